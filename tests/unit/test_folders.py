"""Test that a new folder is published whole and synced, or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from gpt_dist.errors import DataError
from gpt_dist.files.folders import new_folder


def write_and_fail(output: Path, error: Exception) -> None:
    with new_folder(output, DataError, "a lot") as folder:
        (folder / "half").write_text("written")
        raise error


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_nothing(tmp_path: Path, number: int) -> None:
    with pytest.raises(DataError, match=r"tokens: the disk is full.* free a lot, or") as caught:
        write_and_fail(tmp_path / "tokens", OSError(number, os.strerror(number)))
    assert isinstance(caught.value.__cause__, OSError)
    assert list(tmp_path.iterdir()) == []


def test_another_failure_names_its_file_and_leaves_nothing(tmp_path: Path) -> None:
    denied = PermissionError(errno.EACCES, "Permission denied", "/books/a.txt")
    with pytest.raises(DataError, match=r"^/books/a\.txt: Permission denied; nothing was publ"):
        write_and_fail(tmp_path / "tokens", denied)
    with pytest.raises(ZeroDivisionError):
        write_and_fail(tmp_path / "tokens", ZeroDivisionError())
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    output = tmp_path / "file/tokens"
    with pytest.raises(DataError, match=f"^{output}: Not a directory; nothing was published"):
        write_and_fail(output, AssertionError("never entered"))


def test_what_exists_is_kept_and_an_empty_folder_is_filled(tmp_path: Path) -> None:
    output = tmp_path / "tokens"
    output.mkdir()
    with new_folder(output, DataError, "a lot") as folder:
        (folder / "new").write_text("new")
    with pytest.raises(DataError, match=f"^{output}: exists already"):
        write_and_fail(output, AssertionError("never entered"))
    assert [path.name for path in output.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [output]


def test_a_folder_that_cannot_be_replaced_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path == mounted)
    with pytest.raises(DataError, match=f"^{mounted}: .* a mount point.*give a new folder in it"):
        write_and_fail(Path("mounted"), AssertionError("never entered"))
    with pytest.raises(DataError, match=f"^{tmp_path}: the current directory.* new folder in it"):
        write_and_fail(Path(), AssertionError("never entered"))
    assert list(tmp_path.rglob("*")) == [mounted]


def test_all_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    fsync = os.fsync

    def record(descriptor: int) -> None:
        fsync(descriptor)
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))

    monkeypatch.setattr(os, "fsync", record)
    with new_folder(tmp_path / "tokens", DataError, "a lot") as folder:
        (folder / "train").mkdir()
        (folder / "train/shard").write_text("ids")
        (folder / "manifest").write_text("{}")
    *inside, last = synced
    assert {*inside} == {folder, folder / "train", folder / "train/shard", folder / "manifest"}
    assert inside[-1] == folder
    assert last == tmp_path
