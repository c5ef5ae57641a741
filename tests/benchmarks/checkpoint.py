"""Time the saving and loading of checkpoints, beside DeepSpeed's own.

Run by `make bench-checkpoint`: two processes, the same engine and state, the two kinds in turn.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from gpt_dist.data.batches import TokenBatch
from gpt_dist.rendezvous import Launch
from tests.process_group import ProcessGroup
from tests.runs import start

ROUNDS = 11
SIZES = {"model.num_layers": 6, "model.hidden_size": 512, "model.num_heads": 8}


def measure(
    launch: Launch, device: torch.device, zero_stage: int, tokens: Path, directory: Path
) -> dict[str, list[float]]:
    """Return the seconds of each round, by kind, on this rank."""
    from gpt_dist.checkpoint.folder import open_shared, step_path

    settings = SIZES | {"data.path": tokens, "training.micro_batch_size": 1}
    run = start(launch, device, settings | {"parallel.zero_stage": zero_stage}, directory)
    engine, saver = run.engine, run.saver
    tokens_seen = torch.arange(128)[None]
    engine.train_batch([TokenBatch(tokens_seen, tokens_seen)] * 8, 1e-4)
    theirs = engine._engine
    seconds: dict[str, list[float]] = {}

    def timed(kind: str, action: Callable[[], object]) -> None:
        dist.barrier()
        start = time.perf_counter()
        action()
        seconds.setdefault(kind, []).append(time.perf_counter() - start)

    for step in range(1, ROUNDS + 1):
        timed("held by ours", lambda: saver.save(step))  # noqa: B023 -- called at once
        saver.wait()
        timed(
            "held by DeepSpeed's",
            lambda: theirs.save_checkpoint(str(directory / "theirs"), tag="x"),
        )

    def load() -> None:
        checkpoint = open_shared(newest, run.topology)
        engine.state().load(checkpoint)
        checkpoint.files.release()

    newest = step_path(directory / "checkpoints", ROUNDS)
    for _ in range(ROUNDS):
        timed("loaded by ours", load)
        timed(
            "loaded by DeepSpeed's",
            lambda: theirs.load_checkpoint(str(directory / "theirs"), tag="x"),
        )
    return seconds


def main() -> None:
    """Print medians and ratios for ZeRO 1 and 3."""
    import subprocess
    import sys

    group = ProcessGroup(2)
    with tempfile.TemporaryDirectory() as temporary:
        tokens = Path(temporary) / "tokens"
        subprocess.run(
            [
                *(sys.executable, "-m", "data_prep", "build", "data_prep/sample_books"),
                *("--output", str(tokens), "--vocab-size", "8000"),
            ],
            check=True,
            capture_output=True,
        )
        for zero_stage in (1, 3):
            directory = Path(temporary) / f"zero-{zero_stage}"
            by_rank = group.run(measure, zero_stage, tokens, directory, timeout=600)
            medians = {
                kind: max(statistics.median(rank[kind]) for rank in by_rank) for kind in by_rank[0]
            }
            for verb in ("held", "loaded"):
                ours, theirs = medians[f"{verb} by ours"], medians[f"{verb} by DeepSpeed's"]
                print(
                    f"ZeRO {zero_stage}: {verb} {1000 * ours:.0f} ms by ours, "
                    f"{1000 * theirs:.0f} ms by DeepSpeed's: ratio {ours / theirs:.3f}"
                )
    group.close()


if __name__ == "__main__":
    main()
