"""Set aside the files of an earlier run; checkpoints on another disk stay there."""

from __future__ import annotations

from pathlib import Path

from gpt_dist.train.directory import set_aside_earlier_run


def test_a_linked_folder_of_checkpoints_is_kept(tmp_path: Path, capsys):
    directory, disk = tmp_path / "run", tmp_path / "disk"
    directory.mkdir()
    disk.mkdir()
    (directory / "checkpoints").symlink_to(disk)
    set_aside_earlier_run(directory)
    assert not capsys.readouterr().err, "nothing is there yet"
    for number in (1, 2):
        (directory / "metrics.jsonl").write_text("")
        (disk / "step-00000002").mkdir()
        (disk / "step-00000004.damaged").mkdir()
        set_aside_earlier_run(directory)
        assert f"its files are now in earlier-{number}/" in capsys.readouterr().err
        assert (directory / "checkpoints").is_symlink()
        assert not list(disk.glob("step-*"))
        aside = disk / f"earlier-{number}"
        assert {one.name for one in aside.iterdir()} == {"step-00000002", "step-00000004.damaged"}
        assert [one.name for one in (directory / aside.name).iterdir()] == ["metrics.jsonl"]


def test_all_that_an_earlier_run_left_is_moved(tmp_path: Path):
    left = {"metrics.jsonl", "results.json", "config.yaml", "test.tsv"}
    for name in left:
        (tmp_path / name).write_text("")
    folders = {"tensorboard/events", "checkpoints/step-00000002", "model/config.json", "profile/x"}
    for name in folders:
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / ".lock").write_text("")
    set_aside_earlier_run(tmp_path)
    assert {one.name for one in tmp_path.iterdir()} == {".lock", "earlier-1"}
    moved = {one.name for one in (tmp_path / "earlier-1").iterdir()}
    assert moved == left | {name.split("/")[0] for name in folders}
