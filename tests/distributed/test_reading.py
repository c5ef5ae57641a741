"""A start reads each byte about once, over all processes; what one finds damaged, all refuse."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from gpt_dist.checkpoint.opened import inspect_model, open_model, save_model, share_model
from gpt_dist.config.file import load_config
from gpt_dist.errors import DataError, GptDistError
from gpt_dist.files.entries import describe_file
from gpt_dist.rendezvous import Launch
from tests.checkpoints import layout, make_first_version, refusal
from tests.distributed.test_layouts import SMALL
from tests.rows import read_rows
from tests.runs import train
from tests.unit.test_shards import bytes_read

LARGER = SMALL | {"model.num_layers": 4, "model.hidden_size": 256, "training.max_steps": 2}
PATH = "checkpoints/step-00000002"


@pytest.fixture(scope="module")
def run(process_group, token_folder, tmp_path_factory) -> Path:
    """The directory of a run with a checkpoint of some 40 MB, of ZeRO 1."""
    directory = tmp_path_factory.mktemp("run")
    settings = LARGER | {"data.path": token_folder, "checkpoint.interval": 1} | layout(1, 1)
    process_group(2).run(train, settings, directory)
    return directory


def size_of(*folders: Path) -> int:
    """Bytes in the files of folders."""
    return sum(x.stat().st_size for folder in folders for x in folder.rglob("*") if x.is_file())


def reads_of_start(
    launch: Launch, device: torch.device, overrides: dict[str, Any], directory: Path
) -> int:
    """Bytes that a process asked the system for in a whole run, which trains a step at most."""
    before = bytes_read()
    train(launch, device, overrides, directory)
    return bytes_read() - before


def assert_share(reads: list[int], total: int) -> None:
    """Each process read little more than its part, and all together read everything."""
    assert max(reads) <= 1.3 * total / len(reads) + 2**20, (reads, total)
    assert sum(reads) >= total


@pytest.mark.parametrize("target", [layout(1, 1), layout(2, 1), layout(0, 2), layout(3, 2)])
def test_a_resume_reads_each_byte_once(process_group, token_folder, run, tmp_path, target):
    directory = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(directory / "checkpoints/step-00000001")
    settings = LARGER | {"data.path": token_folder} | target
    reads = process_group(2).run(reads_of_start, settings, directory)
    assert_share(reads, size_of(run / PATH, token_folder))


@pytest.mark.usefixtures("run")  # which has the processes import what they need
@pytest.mark.parametrize("target", [layout(0, 2), layout(1, 1)])
def test_a_save_reads_nothing_back(process_group, token_folder, tmp_path, target):
    settings = LARGER | {"data.path": token_folder, "checkpoint.interval": 1} | target
    reads = process_group(2).run(reads_of_start, settings, tmp_path)
    assert size_of(tmp_path / PATH) > 2**25
    assert max(reads) < size_of(token_folder) + 2**20


def test_a_resume_of_the_first_version_reads_each_byte_once(
    process_group, token_folder, run, tmp_path
):
    directory = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(directory / "checkpoints/step-00000001")
    make_first_version(directory / PATH)
    settings = LARGER | {"data.path": token_folder} | layout(1, 1)
    reads = process_group(2).run(reads_of_start, settings, directory)
    assert_share(reads, size_of(run / PATH, token_folder))


@pytest.mark.parametrize("form", ["checkpoint", "run", "folder", "made elsewhere"])
@pytest.mark.parametrize("tensor_parallel_size", [1, 2])
def test_a_source_is_read_once(
    process_group, token_folder, run, tmp_path, form, tensor_parallel_size
):
    source = read = run / PATH
    if form == "run":
        source = run
    if form in ("folder", "made elsewhere"):
        source = read = tmp_path / "model"
        save_model(open_model(run), source)
    if form == "made elsewhere":
        (source / "checksums.json").unlink()
    settings = LARGER | {"data.path": token_folder, "model.source": source}
    settings |= {"training.max_steps": 1} | layout(0, tensor_parallel_size)
    reads = process_group(2).run(reads_of_start, settings, tmp_path / "new")
    assert_share(reads, size_of(read, token_folder))
    first, expected = read_rows(tmp_path / "new")[0], read_rows(run)[-1]
    assert first["validation_loss"] == pytest.approx(expected["validation_loss"], rel=1e-6)


def reads_of_inference(
    launch: Launch, device: torch.device, path: Path, tensor_parallel_size: int
) -> tuple[int, bool]:
    """Bytes that a process read to load a model; whether its slices are those of the files."""
    from gpt_dist.inference.assemble import assemble
    from gpt_dist.model import GPT, load_full_tensors

    before = bytes_read()
    with mock.patch("gpt_dist.inference.assemble.connect", return_value=device):
        model, opened, _ = assemble(inspect_model(path), launch, tensor_parallel_size)
    reads = bytes_read() - before
    expected = GPT(opened.config, model.group)
    load_full_tensors(expected, open_model(path).tensors)
    pairs = zip(model.parameters(), expected.parameters(), strict=True)
    return reads, all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("form", ["checkpoint", "folder"])
@pytest.mark.parametrize("tensor_parallel_size", [1, 2])
def test_inference_reads_each_byte_once(process_group, run, tmp_path, form, tensor_parallel_size):
    path = run / PATH
    if form == "folder":
        path = tmp_path / "model"
        save_model(open_model(run), path)
    results = process_group(2).run(reads_of_inference, path, tensor_parallel_size)
    assert_share([reads for reads, _ in results], size_of(path))
    assert all(same for _, same in results)


def test_released_weights_are_read_once(process_group, tmp_path):
    from tests.unit.test_model_folder import write_released

    write_released(tmp_path)
    results = process_group(2).run(reads_of_inference, tmp_path, 2)
    assert_share([reads for reads, _ in results], size_of(tmp_path))
    assert all(same for _, same in results)


def flip_bit(file: Path, place: float) -> None:
    """Damage a file at a part of its length."""
    content = bytearray(file.read_bytes())
    content[int(place * len(content))] ^= 4
    file.write_bytes(content)


def refusal_without_engine(launch: Launch, *arguments: Any) -> str:
    """Return the refusal of a run, which must come before an engine is built."""
    with mock.patch("gpt_dist.train.start.Engine", side_effect=AssertionError("built an engine")):
        return refusal(launch, *arguments)


@pytest.mark.parametrize("place", [0.0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("name", ["rank-00000.safetensors", "rank-00001.safetensors"])
def test_damage_anywhere_is_named_on_every_rank(
    process_group, token_folder, run, tmp_path, name, place
):
    directory = shutil.copytree(run, tmp_path / "run")
    file = directory / PATH / name
    flip_bit(file, place)
    settings = LARGER | {"data.path": token_folder, "training.resume": directory / PATH}
    for message in process_group(2).run(refusal_without_engine, settings, directory):
        assert f"training.resume: {file}: damaged: its SHA-256 is not the stated one" in message


@pytest.mark.parametrize("place", [0.2, 0.8])
def test_a_damaged_source_is_named_on_every_rank(process_group, token_folder, run, tmp_path, place):
    model = tmp_path / "model"
    save_model(open_model(run), model)
    flip_bit(model / "model.safetensors", place)
    settings = LARGER | {"data.path": token_folder, "model.source": model}
    for message in process_group(2).run(refusal_without_engine, settings, tmp_path / "new"):
        assert f"model.source: {model / 'model.safetensors'}: damaged: its SHA-256" in message


def test_a_run_as_source_falls_back_to_the_checkpoint_before(
    process_group, token_folder, run, tmp_path
):
    source = shutil.copytree(run, tmp_path / "source")
    flip_bit(source / PATH / "rank-00001.safetensors", 0.7)
    settings = LARGER | {"data.path": token_folder, "model.source": source}
    process_group(2).run(train, settings | {"training.max_steps": 1}, tmp_path / "new")
    older = source / "checkpoints/step-00000001"
    assert load_config(tmp_path / "new/config.yaml", []).model.source == str(older)
    for path in source.glob("checkpoints/*/rank-00000.safetensors"):
        flip_bit(path, 0.5)
    for message in process_group(2).run(refusal_without_engine, settings, tmp_path / "other"):
        assert "model.source:" in message
        assert "no checkpoint in it is whole" in message


def shared_model_path(launch: Launch, device: torch.device, path: Path) -> tuple[str, str]:
    """Return the path of a model before the processes share it, and afterwards."""
    from gpt_dist.topology import form_groups

    inspected = inspect_model(path)
    shared = share_model(inspected, form_groups(launch, device, 1))
    shared.files.release()
    return inspected.tokenizer_folder.name, shared.tokenizer_folder.name


def test_inference_falls_back_and_says_so_once(process_group, run, tmp_path):
    directory = shutil.copytree(run, tmp_path / "run")
    flip_bit(directory / PATH / "rank-00000.safetensors", 0.4)
    found = process_group(2).run(shared_model_path, directory)
    assert found == [("step-00000002", "step-00000001")] * 2


@pytest.mark.row(13, case="a shard's .{suffix}, by a start")
@pytest.mark.parametrize("suffix", ["bin", "idx"])
def test_damaged_tokens_are_named_on_every_rank(process_group, token_folder, tmp_path, suffix):
    damaged = shutil.copytree(token_folder, tmp_path / "tokens")
    shard = damaged / f"validation/shard-00000.{suffix}"
    flip_bit(shard, 0.99)
    settings = SMALL | {"data.path": damaged}
    for message in process_group(2).run(refusal_without_engine, settings, tmp_path / "run"):
        assert f"{shard}: damaged: its SHA-256 is not the stated one" in message
        assert "copy the token folder again" in message


def refuse(path: Path, problem: str) -> DataError:
    return DataError(f"{path}: {problem}")


def read_places(
    launch: Launch, device: torch.device, folder: Path, places: list[tuple[str, int, int]]
) -> list[bytes]:
    """The bytes at some places of a folder's files, read by all processes together."""
    from gpt_dist.files.shared import SharedFiles
    from gpt_dist.topology import form_groups

    entries = {path.name: describe_file(path) for path in sorted(folder.iterdir())}
    entries |= dict.fromkeys(name for name in entries if name.startswith("unstated"))
    with mock.patch("gpt_dist.files.shared._SENT_BYTES", 999_983):
        files = SharedFiles(folder, entries, refuse)
        files.share(form_groups(launch, device, 1))
        read = []
        for name, start, length in places:
            target = torch.empty(length, dtype=torch.uint8)
            files.read(name, start, target)
            read.append(target.numpy().tobytes())
    with pytest.raises(ValueError, match="ends before"):
        files.read("large", files.size("large") - 3, torch.empty(1))
    files.release()
    return read


def test_any_bytes_of_shared_files_are_those_on_the_disk(process_group, tmp_path):
    draws = random.Random(0)
    sizes = {"empty": 0, "large": 7_654_321, "small": 100, "unstated": 3_000_001}
    for name, size in sizes.items():
        (tmp_path / name).write_bytes(draws.randbytes(size))
    places = [(name, 0, size) for name, size in sizes.items()]
    for _ in range(60):
        name = draws.choice(["large", "small", "unstated"])
        start = draws.randrange(sizes[name])
        places.append((name, start, draws.randrange(min(sizes[name] - start, 2_500_000) + 1)))
    expected = [
        (tmp_path / name).read_bytes()[start : start + length] for name, start, length in places
    ]
    assert process_group(2).run(read_places, tmp_path, places) == [expected, expected]


def share_different(launch: Launch, device: torch.device, folders: list[Path]) -> str:
    from gpt_dist.files.shared import SharedFiles
    from gpt_dist.topology import form_groups

    folder = folders[launch.rank]
    files = SharedFiles(folder, {"file": describe_file(folder / "file")}, refuse)
    try:
        files.share(form_groups(launch, device, 1))
    except GptDistError as error:
        return str(error)
    return ""


def test_processes_that_see_different_files_are_refused(process_group, tmp_path):
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
        (folder / "file").write_text(folder.name)
    for folder, message in zip(
        folders, process_group(2).run(share_different, folders), strict=True
    ):
        assert message.startswith(f"{folder}: not the same for every process; use storage that")
    assert process_group(2).run(share_different, [folders[0]] * 2) == ["", ""]
