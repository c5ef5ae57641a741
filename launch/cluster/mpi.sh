#!/bin/bash
# Pre-train under Open MPI, as launch/cluster/mpi.sh on one of the hosts.
#
# The hostfile has lines such as "node1 slots=8". The supervisor reads it again before each start, so
# a host that is taken out of it leaves a smaller run, with the same global batch. To save and stop,
# signal the supervisor and not mpirun, which kills the processes about a second after SIGTERM.
set -euo pipefail
cd "$(dirname "$0")/../.."

COMMAND=(launch/pretrain.py configs/pretrain/gpt1.yaml data.path=/data/tokens) # CHANGE

exec python launch/supervise.py --hostfile hosts -- mpirun --bind-to none python "${COMMAND[@]}"
