"""The stated content of a model folder: size and hashes of each file, and the weights' loss."""

import re
from pathlib import Path
from typing import Literal

from pydantic import FiniteFloat, ValidationError

from gpt_dist.errors import ModelError, first_problem
from gpt_dist.files.entries import ChunkedEntry, SealedRecord, describe_file
from gpt_dist.model.tensor_files import read_json

CHECKSUMS_NAME = "checksums.json"

_LIMIT_BYTES = 2**22
_READ = re.compile(
    r".*\.(safetensors|model|npy|bpe|index\.json)|(.*config|tokenizer|special_tokens_map|added_tokens"
    r"|vocab|encoder_bpe_40000|params_shapes|task)\.json|(merges|vocab)\.txt"
)
"""Files that a model or its tokenizer is read from, here or by transformers."""
_REMEDY = f"copy the model folder again, or remove {CHECKSUMS_NAME} if you changed it on purpose"


class _Checksums(SealedRecord):
    """Content of `checksums.json`; version 1 has no hashes of chunks."""

    format: Literal["gpt_dist.model"]
    version: Literal[1, 2]
    probe_loss: FiniteFloat
    files: dict[str, ChunkedEntry]


def write_checksums(folder: Path, probe_loss: float) -> None:
    """Write `checksums.json` about a complete folder: its files, and the loss on fixed tokens."""
    files = {path.name: describe_file(path) for path in sorted(folder.iterdir())}
    content = _Checksums(format="gpt_dist.model", version=2, probe_loss=probe_loss, files=files)
    text = content.sealed().model_dump_json(indent=2, exclude_defaults=True)
    (folder / CHECKSUMS_NAME).write_text(text + "\n")


def read_checksums(folder: Path) -> tuple[float | None, dict[str, ChunkedEntry]]:
    """Return the stated loss and the stated files; nothing of a folder that was made elsewhere.

    Raises ModelError where they cannot be read, and names a file that is not stated and that a
    reader would take, perhaps in place of a stated one. No stated file is looked at.
    """
    path = folder / CHECKSUMS_NAME
    if not path.exists():
        return None, {}
    try:
        stated = _Checksums.model_validate(read_json(path, _LIMIT_BYTES))
    except ValidationError as error:
        raise ModelError(f"{path}: {first_problem(error)}; copy the folder again") from None
    if any(name != Path(name).name for name in stated.files):
        raise ModelError(f"{path}: does not list the folder's files; copy the folder again")
    if stated.sealed() != stated:
        raise ModelError(f"{path}: damaged: its digest does not match its content; copy it again")
    for file in sorted(folder.iterdir()):
        if file.name not in stated.files and _READ.fullmatch(file.name):
            raise ModelError(f"{file}: not listed in {CHECKSUMS_NAME}; remove it; {_REMEDY}")
    return stated.probe_loss, stated.files


def refuse(path: Path, problem: str) -> ModelError:
    """Return the error for a file that cannot be read, or is not as it is stated."""
    stated = (path.parent / CHECKSUMS_NAME).exists()
    remedy = _REMEDY if stated else "copy the model folder again, or export it again"
    return ModelError(f"{path}: {problem}; {remedy}")
