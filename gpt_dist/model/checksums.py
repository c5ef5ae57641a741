"""What a model folder should hold: the hash of each file, and the loss that its weights give."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from gpt_dist.errors import ModelError
from gpt_dist.model.tensor_files import read_json

CHECKSUMS_NAME = "checksums.json"
FORMAT = "gpt_dist.model"
VERSION = 1

_LIMIT_BYTES = 2**22
_READ = re.compile(
    r".*\.(safetensors|model|npy|bpe|index\.json)|(.*config|tokenizer|special_tokens_map|added_tokens"
    r"|vocab|encoder_bpe_40000|params_shapes|task)\.json|(merges|vocab)\.txt"
)
"""Files that a model or its tokenizer is read from, here or by transformers."""
_REMEDY = f"or remove {CHECKSUMS_NAME} if you changed the folder on purpose"


def write_checksums(folder: Path, probe_loss: float) -> None:
    """State every file there is, and the loss on fixed tokens; call it last."""
    files = {path.name: _describe(path) for path in sorted(folder.iterdir())}
    content = {"format": FORMAT, "version": VERSION, "probe_loss": probe_loss, "files": files}
    content["digest"] = _digest(content)
    (folder / CHECKSUMS_NAME).write_text(json.dumps(content, indent=2) + "\n")


def check_files(folder: Path) -> float | None:
    """Hash every stated file, and return the stated loss; ModelError names the first that differs.

    So does one that is not stated and that a reader would take, perhaps in place of a stated one.
    A folder made elsewhere states nothing, and nothing is found amiss.
    """
    path = folder / CHECKSUMS_NAME
    if not path.exists():
        return None
    content = read_json(path, _LIMIT_BYTES)
    files = content.get("files")
    if (content.get("format"), content.get("version")) != (FORMAT, VERSION):
        raise ModelError(f"{path}: not of {FORMAT} version {VERSION}; copy the folder again")
    if not isinstance(files, dict) or any(name != Path(name).name for name in files):
        raise ModelError(f"{path}: does not list the folder's files; copy the folder again")
    loss, digest = content.get("probe_loss"), content.pop("digest", None)
    if not isinstance(loss, float) or digest != _digest(content):
        raise ModelError(f"{path}: damaged, its digest is another; copy the folder again")
    for name, stated in files.items():
        file = folder / name
        if not file.is_file() or _describe(file) != stated:
            raise ModelError(
                f"{file}: missing, or not as {CHECKSUMS_NAME} states it; copy the model folder "
                f"again, {_REMEDY}"
            )
    for file in sorted(folder.iterdir()):
        if file.name not in files and _READ.fullmatch(file.name):
            raise ModelError(f"{file}: not listed in {CHECKSUMS_NAME}; remove it, {_REMEDY}")
    return loss


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}
