"""The rows of the table of faults: number, fault, and what happens then.

They are those of the table that the project was given; a test shows one by the mark `row`.
"""

from __future__ import annotations

FAULTS: dict[int, tuple[str, str]] = {
    1: (
        "kill -9 of a rank, in forward or in a reduction",
        "the others end within 35 s with a nonzero status; a restart goes on to the same bits",
    ),
    2: ("kill -9 of rank 0, or of a tensor-parallel peer", "as row 1"),
    3: (
        "kill -9 at any place of a save",
        "a restart goes on from the newest whole checkpoint to the same bits; left-overs go",
    ),
    4: ("kill -9 of the launcher", "no process is left after 10 s; the run is not complete"),
    5: (
        "SIGTERM or SIGUSR1 to the launcher or to one rank",
        "all save the same step within 20 s, and end with status 75",
    ),
    6: ("a second signal while the first is answered with a save", "one whole checkpoint"),
    7: (
        "a rank is stopped or hangs",
        "it is named after `training.watchdog` seconds, with stacks, and the run ends",
    ),
    8: ("a rank exits with 0 before the end", "noticed; the others end with a nonzero status"),
    9: (
        "a full disk in a checkpoint",
        "one error on all ranks at once; the checkpoint before stays whole",
    ),
    10: ("a full disk in data preparation", "nothing half-written is published; a rerun goes on"),
    11: ("a read-only or missing directory", "refused before the first step"),
    12: ("a truncated shard", "refused by name when it is opened"),
    13: (
        "a flipped bit in a shard, or in the newest checkpoint",
        "`verify` and the start name the file; the checkpoint before is used, to the same bits",
    ),
    14: ("every checkpoint is damaged", "refused; nothing starts from scratch"),
    15: (
        "a gradient that is NaN or infinite on one rank",
        "all skip the step; weights and moments stay; step, rank and samples are named",
    ),
    16: ("such gradients 20 times in a row", "the run ends, and saves nothing of them"),
    17: (
        "a resume in another data-parallel or tensor-parallel size or ZeRO stage",
        "exactly the saved weights and moments; the next samples follow",
    ),
    18: (
        "a resume with another configuration, tokenizer or data",
        "refused with both values, unless the key may change",
    ),
    19: ("two runs in one directory", "the second is refused"),
    20: (
        "broken UTF-8, NUL, byte order mark, CRLF; an empty book; 1 GB in one line",
        "read by a stated rule and counted in the manifest; memory is bounded",
    ),
    21: (
        "an interrupted build",
        "a rerun goes on to the same bytes, for any number of workers and processes",
    ),
    22: (
        "a hostile checkpoint, model, archive or hostfile",
        "refused or left out by name; no code runs, nothing is written elsewhere",
    ),
    23: ("a busy port; a stale lock of a build", "one line within 30 s; no waiting"),
    24: ("other PYTHONHASHSEEDs; a clock that jumps", "the same bits"),
    25: (
        "the host's own name is a loopback address; left-over variables; a wrong or IPv6 address",
        "works, or one line says within 30 s who is waited for and what to unset",
    ),
    26: (
        "a host of two is lost",
        "the others end within 2 minutes and name it; a smaller run goes on, equal within 1e-5",
    ),
    27: ("the link between two hosts is cut for 30 s; for good", "the run goes on; as row 26"),
    28: ("one rank refuses before the first step", "all end at once, with one message"),
    29: (
        "a full or read-only disk under metrics, logs or TensorBoard",
        "one line; rows are dropped, training and checkpoints go on",
    ),
    30: (
        "a shard is truncated, or a bit of it flips, while training",
        "a typed error before it is trained on",
    ),
    31: (
        "a bit flips in one copy of weights or moments",
        "found by the comparison; the rank is named, nothing is saved",
    ),
    32: (
        "NaN or a negative second moment in a checkpoint; a manifest of 700 MB",
        "refused by name; memory is bounded",
    ),
    33: (
        "the loss leaps; a bad sample",
        "the run ends, or goes back and leaves the samples out, by a ledger that repeats it",
    ),
    34: ("SIGTERM to a launcher or to the supervisor", "saved within the launcher's grace"),
    35: (
        "checkpoints on a disk of each host's own",
        "refused before the first step, with the remedy",
    ),
    36: (
        "a random fault every 20 steps, two hosts under the supervisor",
        "the weights of the undisturbed run",
    ),
}
