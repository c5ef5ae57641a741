"""Runs and model folders written by release 0.1 go on: opened, resumed, exported."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest

from gpt_dist.checkpoint.format import Checkpoint
from gpt_dist.checkpoint.fragments import KINDS
from gpt_dist.checkpoint.opened import open_model, save_model
from tests.runs import train

RELEASE = Path(__file__).parents[1] / "fixtures/release-0.1"
RUNS = {
    "post": {"parallel.zero_stage": 1},
    "pre": {
        "model.norm_position": "pre",
        "parallel.tensor_parallel_size": 2,
        "parallel.zero_stage": 2,
        "training.precision": "bf16",
    },
}
SETTINGS = {
    "data.path": RELEASE / "tokens",
    "model.num_layers": 2,
    "model.hidden_size": 32,
    "model.num_heads": 2,
    "model.sequence_length": 16,
    "model.dropout": 0.1,
    "training.max_steps": 8,
    "training.global_batch_size": 4,
    "checkpoint.interval": 4,
    "logging.interval": 1,
    "schedule.warmup_steps": 2,
    "validation.interval": 4,
    "validation.max_samples": 8,
}


def hashes(checkpoint: Path) -> dict[str, str]:
    """The SHA-256 of every full tensor of a checkpoint."""
    opened = Checkpoint(checkpoint)
    return {
        f"{kind}/{name}": hashlib.sha256(opened.read(kind, name).numpy().tobytes()).hexdigest()
        for name in opened.manifest.parameters
        for kind in KINDS
    }


def processor() -> str:
    """The SHA-256 of what the processor can do."""
    flags = re.search(r"flags\s*: (.*)", Path("/proc/cpuinfo").read_text())[1]
    return hashlib.sha256(" ".join(sorted(flags.split())).encode()).hexdigest()


def losses(directory: Path) -> list[float]:
    rows = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if "loss" in row]


EXPECTED = json.loads((RELEASE / "expected.json").read_text())


def resume(process_group, name: str, folder: Path) -> Path:
    """Train a copy of a run to its end, and return its directory."""
    directory = shutil.copytree(RELEASE / name, folder / name)
    assert hashes(directory / "checkpoints/step-00000004") == EXPECTED[f"{name}/4"]
    process_group(2).run(train, SETTINGS | RUNS[name], directory)
    return directory


@pytest.mark.parametrize("name", RUNS)
def test_its_run_goes_on(process_group, tmp_path, name):
    directory = resume(process_group, name, tmp_path)
    assert losses(directory) == pytest.approx(losses(RELEASE / name), rel=1e-6)
    found = hashes(directory / "checkpoints/step-00000008")
    assert found.keys() == EXPECTED[f"{name}/8"].keys()


@pytest.mark.skipif(
    processor() != EXPECTED["processor"],
    reason="the expected bits are of another processor, which rounds its products otherwise",
)
@pytest.mark.parametrize("name", RUNS)
def test_its_run_goes_on_bit_for_bit(process_group, tmp_path, name):
    directory = resume(process_group, name, tmp_path)
    assert hashes(directory / "checkpoints/step-00000008") == EXPECTED[f"{name}/8"]


@pytest.mark.parametrize("name", RUNS)
def test_its_model_folder_is_what_its_checkpoint_exports_today(tmp_path, name):
    before, after = RELEASE / f"{name}-model", tmp_path / "model"
    save_model(open_model(RELEASE / name), after)
    open_model(before)
    names = {file.name for file in before.iterdir()}
    assert names == {file.name for file in after.iterdir()}
    # config.json has gained the token that ends a text, and so the checksums are others.
    for file in names - {"config.json", "checksums.json"}:
        assert (before / file).read_bytes() == (after / file).read_bytes(), file
    configs = [json.loads((folder / "config.json").read_text()) for folder in (before, after)]
    changed = {key for key in configs[1] if configs[0][key] != configs[1][key]}
    assert changed == {"bos_token_id", "eos_token_id"}
