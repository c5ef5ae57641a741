"""Make small runs that leave checkpoints, and damage or forge these."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from gpt_dist.checkpoint.folder import open_whole
from gpt_dist.checkpoint.format import Manifest
from gpt_dist.checkpoint.opened import open_model
from gpt_dist.errors import GptDistError
from gpt_dist.files.entries import describe_file
from gpt_dist.model import probe_loss
from gpt_dist.rendezvous import Launch
from tests.distributed.test_layouts import SMALL
from tests.runs import train

STEPS = 8
RUN = SMALL | {
    "training.max_steps": STEPS,
    "schedule.decay_steps": STEPS,
    "validation.interval": STEPS // 2,
    "checkpoint.interval": STEPS // 2,
}
SHORT = RUN | {"training.max_steps": 4, "training.micro_batch_size": 4}

FILES = ["manifest.json", "rank-00000.safetensors", "rank-00001.safetensors", "tokenizer.model"]


def layout(zero_stage: int, tensor_parallel_size: int) -> dict[str, Any]:
    return {
        "parallel.zero_stage": zero_stage,
        "parallel.tensor_parallel_size": tensor_parallel_size,
    }


def saved_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return all tensors in a checkpoint that training depends on, whole."""
    checkpoint = open_whole(path)
    return {
        f"{kind}/{name}": checkpoint.read(kind, name)
        for name in checkpoint.manifest.parameters
        for kind in ("weight", "exp_avg", "exp_avg_sq")
    }


def refusal(
    launch: Launch, device: torch.device, overrides: dict[str, Any], directory: Path
) -> str:
    """Return the message that refuses a run, or an empty text."""
    try:
        train(launch, device, overrides, directory)
    except GptDistError as error:
        return str(error)
    return ""


class Bomb:
    """Object that leaves a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return (Path.touch, (self.trace,))


def vouch_for(checkpoint: Path, name: str) -> None:
    """Change the manifest to state a file as it is now, as its planter would."""
    manifest = Manifest.model_validate_json((checkpoint / "manifest.json").read_bytes())
    files = {**manifest.files, name: describe_file(checkpoint / name)}
    manifest = manifest.model_copy(update={"files": files})
    (checkpoint / "manifest.json").write_text(manifest.sealed().model_dump_json())


def make_first_version(checkpoint: Path) -> None:
    """Give a checkpoint the manifest that version 1 of the format has."""
    file = checkpoint / "manifest.json"
    content = json.loads(file.read_bytes())
    opened = open_model(checkpoint)
    content |= {"version": 1, "probe_loss": probe_loss(opened.tensors.__getitem__, opened.config)}
    for entry in content["files"].values():
        entry.pop("chunks", None)
    for entry in content["parameters"].values():
        del entry["fingerprints"]
    _seal(file, content)


def forge(checkpoint: Path, keys: list[Any], value: Any) -> None:
    """Change one value in the manifest, and its digest with it."""
    file = checkpoint / "manifest.json"
    content = json.loads(file.read_bytes())
    place = content
    for key in keys[:-1]:
        place = place[key]
    if value is None:
        del place[keys[-1]]
    else:
        place[keys[-1]] = value
    _seal(file, content)


def _seal(file: Path, content: dict[str, Any]) -> None:
    content.pop("digest", None)
    canonical = json.dumps(content, sort_keys=True).encode()
    content["digest"] = hashlib.sha256(canonical).hexdigest()
    file.write_text(json.dumps(content))


def read_all(directory: Path) -> str:
    """Open a run's model, tensors and tokenizer; return the message of a refusal, if any."""
    try:
        opened = open_model(directory)
        assert all(tensor.isfinite().all() for tensor in opened.tensors.values())
        assert opened.tokenizer.vocab_size == 500
    except GptDistError as error:
        return str(error)
    return ""


def damages(folder: Path, rng: random.Random, count: int) -> Iterator[tuple[Path, bytes]]:
    """Damage the files of a folder by a flipped bit or a cut; yield each with its old content.

    Each damage is undone before the next.
    """
    files = sorted(folder.iterdir())
    for _ in range(count):
        file = rng.choice(files)
        content = file.read_bytes()
        damaged = bytearray(content)
        if rng.random() < 0.5:
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        else:
            del damaged[rng.randrange(len(damaged)) :]
        file.write_bytes(damaged)
        yield file, content
        file.write_bytes(content)


def means_the_same(file: Path, content: bytes) -> bool:
    """Return whether a JSON file still means `content`; white space and escapes may differ."""
    with suppress(ValueError):
        return file.suffix == ".json" and json.loads(file.read_bytes()) == json.loads(content)
    return False
