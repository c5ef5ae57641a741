"""The stated content of a model folder: size and hashes of each file, and the weights' loss."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gpt_dist.errors import ModelError, first_problem
from gpt_dist.files.entries import ChunkedEntry, describe_file
from gpt_dist.model.tensor_files import read_json

CHECKSUMS_NAME = "checksums.json"
FORMAT = "gpt_dist.model"
VERSION = 2
"""Version 1 has no hashes of chunks."""

_LIMIT_BYTES = 2**22
_READ = re.compile(
    r".*\.(safetensors|model|npy|bpe|index\.json)|(.*config|tokenizer|special_tokens_map|added_tokens"
    r"|vocab|encoder_bpe_40000|params_shapes|task)\.json|(merges|vocab)\.txt"
)
"""Files that a model or its tokenizer is read from, here or by transformers."""
_REMEDY = f"copy the model folder again, or remove {CHECKSUMS_NAME} if you changed it on purpose"


def write_checksums(folder: Path, probe_loss: float) -> None:
    """State every file there is, and the loss on fixed tokens; call it last."""
    files = {
        path.name: describe_file(path).model_dump(mode="json", exclude_defaults=True)
        for path in sorted(folder.iterdir())
    }
    content = {"format": FORMAT, "version": VERSION, "probe_loss": probe_loss, "files": files}
    content["digest"] = _digest(content)
    (folder / CHECKSUMS_NAME).write_text(json.dumps(content, indent=2) + "\n")


def read_checksums(folder: Path) -> tuple[float | None, dict[str, ChunkedEntry]]:
    """Return the stated loss and the stated files; nothing of a folder that was made elsewhere.

    Raises ModelError where they cannot be read, and names a file that is not stated and that a
    reader would take, perhaps in place of a stated one. No stated file is looked at.
    """
    path = folder / CHECKSUMS_NAME
    if not path.exists():
        return None, {}
    content = read_json(path, _LIMIT_BYTES)
    files = content.get("files")
    if content.get("format") != FORMAT or content.get("version") not in (1, VERSION):
        raise ModelError(f"{path}: not of {FORMAT} version 1 or {VERSION}; copy the folder again")
    if not isinstance(files, dict) or any(name != Path(name).name for name in files):
        raise ModelError(f"{path}: does not list the folder's files; copy the folder again")
    loss, digest = content.get("probe_loss"), content.pop("digest", None)
    if not isinstance(loss, float) or digest != _digest(content):
        raise ModelError(f"{path}: damaged, its digest is another; copy the folder again")
    for file in sorted(folder.iterdir()):
        if file.name not in files and _READ.fullmatch(file.name):
            raise ModelError(f"{file}: not listed in {CHECKSUMS_NAME}; remove it; {_REMEDY}")
    try:
        return loss, {name: ChunkedEntry.model_validate(entry) for name, entry in files.items()}
    except ValidationError as error:
        raise ModelError(f"{path}: {first_problem(error)}; copy the folder again") from None


def refuse(path: Path, problem: str) -> ModelError:
    """Return the error for a file that is not as it is stated."""
    return ModelError(f"{path}: {problem}; {_REMEDY}")


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
