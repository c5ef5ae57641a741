#!/bin/bash
# Pre-train on hosts that this one reaches by ssh, as launch/cluster/deepspeed-hosts.sh.
#
# The hostfile has lines such as "node1 slots=8". Each host needs the project and its environment
# under the same path, pdsh on this host, and ssh without a password. The supervisor checks host
# names and arguments, which DeepSpeed hands to a shell of every host, and reads the hostfile again
# before each start: a host that is taken out of it leaves a smaller run, with the same global batch.
set -euo pipefail
cd "$(dirname "$0")/../.."

COMMAND=(launch/pretrain.py configs/pretrain/gpt-1.3b.yaml data.path=/data/tokens) # CHANGE

exec python launch/supervise.py --hostfile hosts -- deepspeed "${COMMAND[@]}"
