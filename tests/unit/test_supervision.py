"""Test what the supervisor reads from a command and a hostfile, and how it decides."""

from __future__ import annotations

import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from gpt_dist.config.file import load_config
from gpt_dist.errors import ConfigError, GptDistError, Interrupted, LaunchError
from gpt_dist.rendezvous import Launch
from gpt_dist.train.status import LAUNCHER_ENDED, Status, lock, read_status, recorded
from supervision import commands
from supervision.commands import check_safe, parse_command, resize, resuming
from supervision.hosts import check_exports, choose_hosts, read_hostfile
from supervision.verdict import judge

TINY = "configs/pretrain/tiny.yaml"
RUN = ["launch/pretrain.py", TINY, "run.directory=runs/x"]
HOSTS = {"node1": 2, "node2": 2}
LOCAL = {"localhost": 3}
WRITTEN = Path("runs/x/hostfile")


@pytest.fixture(autouse=True)
def _no_default_hostfile(monkeypatch):
    monkeypatch.setattr(commands, "DEFAULT_HOSTFILE", Path("/absent"))


@pytest.mark.parametrize(
    ("start", "launcher", "options"),
    [
        ("deepspeed --num_gpus 2", "deepspeed", ["--num_gpus", "2"]),
        ("python .venv/bin/deepspeed -H hosts", "deepspeed", ["-H", "hosts"]),
        ("torchrun --nproc-per-node=2", "torchrun", ["--nproc-per-node=2"]),
        ("python -m torch.distributed.run --standalone", "torchrun", ["--standalone"]),
        ("nice -n 19 mpirun -n 2 python", "mpirun", ["-n", "2", "python"]),
        ("srun --nodes 2 python", "srun", ["--nodes", "2", "python"]),
        ("python", "python", []),
    ],
)
def test_the_parts_of_a_command(start, launcher, options):
    command = parse_command([*start.split(), *RUN])
    assert command.launcher == launcher
    assert list(command.options) == options
    assert list(command.arguments) == RUN
    assert command.directory == Path("runs/x")


def test_a_command_that_does_not_train_is_refused():
    with pytest.raises(LaunchError, match="names neither launch/pretrain"):
        parse_command(["deepspeed", "train.py", TINY])


def test_a_bad_configuration_is_refused_without_a_start():
    with pytest.raises(ConfigError, match="modle: unknown key"):
        parse_command(["python", "launch/pretrain.py", TINY, "modle.num_layers=2"])


@pytest.mark.parametrize(
    ("start", "hosts", "resized"),
    [
        ("deepspeed --num_gpus 4 --hostfile=all --num_nodes 2", HOSTS, "deepspeed --hostfile FILE"),
        ("deepspeed -H all --no_ssh_check", LOCAL, "deepspeed --num_gpus 3 --no_ssh_check"),
        ("deepspeed -H all", {"192.0.2.7": 2}, "deepspeed --hostfile FILE --force_multi"),
        ("mpirun -np 8 -x A python", HOSTS, "mpirun -n 4 --hostfile FILE -x A python"),
        ("mpirun -n 8 --hostfile all python", LOCAL, "mpirun -n 3 --hostfile FILE python"),
        ("torchrun --nproc_per_node=8", LOCAL, "torchrun --nproc-per-node 3"),
    ],
)
def test_a_command_for_other_hosts(start, hosts, resized):
    command = parse_command([*start.split(), *RUN])
    assert resize(command, hosts, Path("FILE"), moved=False) == [*resized.split(), *RUN]


def test_the_master_address_follows_rank_0():
    command = parse_command(["deepspeed", "--master_addr", "10.0.0.1", *RUN])
    stayed = resize(command, {"node1": 1, "node2": 1}, WRITTEN, moved=False)
    moved = resize(command, {"node2": 1, "node3": 1}, WRITTEN, moved=True)
    assert stayed[stayed.index("--master_addr") + 1] == "10.0.0.1"
    assert moved[moved.index("--master_addr") + 1] == "node2"


@pytest.mark.parametrize(
    ("start", "hosts", "reason"),
    [
        ("srun python", HOSTS, "a command of srun cannot be resized; SLURM decides"),
        ("python", HOSTS, "a command of python cannot be resized"),
        ("torchrun --nproc-per-node 2", HOSTS, "torchrun starts the processes of its own host"),
        ("torchrun --nnodes 2", {"localhost": 2}, "torchrun starts the processes of its own host"),
        ("deepspeed --include node1:0", HOSTS, "leave --include out of the deepspeed command"),
        ("mpirun --host=node1 python", HOSTS, "leave --host=node1 out of the mpirun command"),
    ],
)
def test_a_command_that_cannot_be_resized_is_refused(start, hosts, reason):
    with pytest.raises(LaunchError, match=reason):
        resize(parse_command([*start.split(), *RUN]), hosts, WRITTEN, moved=False)


@pytest.mark.parametrize(
    ("slots", "settings", "expected"),
    [
        ({"a": 2, "b": 2}, [], {"a": 2, "b": 2}),
        ({"a": 3, "b": 3}, ["training.global_batch_size=20"], {"a": 3, "b": 2}),
        ({"a": 3}, ["parallel.tensor_parallel_size=2"], {"a": 2}),
        ({"a": 8, "b": 8}, ["training.micro_batch_size=2"], {"a": 8}),
        ({"a": 1, "b": 8, "c": 8}, [], {"a": 1, "b": 8, "c": 7}),
    ],
)
def test_the_largest_legal_world_size(slots, settings, expected):
    """The global batch is 16 unless it is given."""
    config = load_config(Path(TINY), settings)
    assert choose_hosts(config, slots, Path("hosts")) == expected


def test_too_few_slots_are_refused():
    config = load_config(Path(TINY), ["parallel.tensor_parallel_size=4"])
    with pytest.raises(LaunchError, match="hosts: no number of processes up to its 3 slots"):
        choose_hosts(config, {"a": 3}, Path("hosts"))


def test_a_hostfile(tmp_path):
    path = tmp_path / "hosts"
    path.write_text("# all\nnode1 slots=2\n\n10.0.0.7  slots=4 # new\nfe80::1 slots=1\nx slots=0\n")
    assert read_hostfile(path) == {"node1": 2, "10.0.0.7": 4, "fe80::1": 1}


@pytest.mark.row(22, case="a hostfile, under {launcher}")
@pytest.mark.parametrize(
    "name", ["-oProxyCommand=touch", "a;touch", "$(touch)", "a,b", "a[1-3]", "-", "user@a", "a%h"]
)
@pytest.mark.parametrize("launcher", ["deepspeed", "mpirun"])
def test_a_hostile_host_is_refused_before_a_launcher_sees_it(tmp_path, name, launcher):
    path = tmp_path / "hosts"
    path.write_text(f"node1 slots=1\n{name} slots=1\n")
    with pytest.raises(LaunchError, match="is not a plain host name or address"):
        read_hostfile(path)
    with pytest.raises(LaunchError, match="is not a plain host name or address"):
        check_safe([launcher, "--hostfile", str(path), *RUN])


@pytest.mark.parametrize(
    "lines", ["node1", "node1 slots=", "node1 slots=two", "a slots=1\na slots=1", "a slots=1 -x"]
)
def test_a_damaged_hostfile_is_refused(tmp_path, lines):
    path = tmp_path / "hosts"
    path.write_text(lines)
    with pytest.raises(LaunchError, match=str(path)):
        read_hostfile(path)


HOSTILE = [
    "run.directory=x $(touch F)",
    "run.directory=x;touch",
    "run.directory=x`touch`",
    "run.directory='x'",
    "data.tokenizer=a\nb",
    "run.directory=x%h",
    "data.tokenizer=a~",
]


@pytest.mark.row(22, case="an argument that a shell would run")
@pytest.mark.parametrize("argument", HOSTILE)
def test_an_argument_that_a_shell_would_run_is_refused(argument):
    words = ["launch/pretrain.py", TINY, argument]
    with pytest.raises(LaunchError, match="hands this to a shell of every host"):
        check_safe(["deepspeed", *words], HOSTS)
    check_safe(["deepspeed", *words], {"node1": 8})  # no shell sees it
    check_safe(["deepspeed", "--no_ssh", *words], HOSTS)
    check_safe(["mpirun", "python", *words], HOSTS)


@pytest.mark.parametrize("option", ["--venv_script=x;touch", "--master_addr=$(touch)"])
def test_an_option_that_a_shell_would_run_is_refused(option):
    with pytest.raises(LaunchError, match="hands this to a shell of every host"):
        check_safe(["deepspeed", option, *RUN], HOSTS)


def test_plain_arguments_are_allowed():
    check_safe(
        ["deepspeed", "--launcher_args", "-f 8", *RUN, "data.path=[{path: a, weight: 1}]"], HOSTS
    )


def test_exported_variables_are_checked(tmp_path):
    check_exports({"PYTHONPATH": "/a:/b", "HOME": "$(touch)"}, tmp_path)
    for name, value in {"NCCL_X": "$(touch)", "PYTHON;touch": "1", "UCX_TLS": 'a"b'}.items():
        with pytest.raises(LaunchError, match="of the environment: deepspeed hands it to a shell"):
            check_exports({name: value}, tmp_path)
    (tmp_path / ".deepspeed_env").write_text("PATH=/bin\nX=`touch`\n")
    with pytest.raises(LaunchError, match=r"X of .*\.deepspeed_env"):
        check_exports({}, tmp_path)
    with pytest.raises(LaunchError, match="use a plain path"):
        check_exports({}, Path("/tmp/$(touch)"))


def test_a_restart_does_not_begin_anew():
    words = ["python", *RUN, "training.resume=never"]
    config = parse_command(words).config
    assert resuming(words, config, made_checkpoints=False) == words
    again = resuming(words, config, made_checkpoints=True)
    assert parse_command(again).config.training.resume == "auto"


BEFORE = Status("complete", 5, time="2026-01-01")
CASES = [
    ("complete after all", Status("complete", 9), {"exit_status": 1}, "complete"),
    ("a status of 0 without a record", BEFORE, {}, "failed"),
    ("no record at all", None, {"exit_status": 1}, "failed"),
    ("killed", Status("running", 9), {}, "failed"),
    ("failed", Status("failed", 9, "RuntimeError: x"), {"exit_status": 1}, "failed"),
    ("refused", Status("refused", None, "ConfigError: x"), {"exit_status": 1}, "refused"),
    ("preempted", Status("interrupted", 9, "by a signal"), {"exit_status": 1}, "interrupted"),
    ("launcher killed", Status("interrupted", 9, LAUNCHER_ENDED), {"exit_status": -9}, "failed"),
    ("left over, told to end", Status("interrupted", 9, "by a signal"), {"told": True}, "failed"),
    ("stopped", Status("interrupted", 9, LAUNCHER_ENDED), {"stopped": True}, "interrupted"),
    ("stopped, not saved", Status("running", 9), {"stopped": True}, "failed"),
    ("stopped before it began", BEFORE, {"stopped": True}, "interrupted"),
    ("stopped before it trained", Status("running"), {"stopped": True}, "interrupted"),
    ("a state of another version", Status("paused", 9), {}, "failed"),
]


@pytest.mark.parametrize(
    ("after", "facts", "state"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_the_record_decides(after, facts, state):
    assert judge(BEFORE, after, **{"exit_status": 0, **facts}).state == state


@pytest.mark.parametrize(
    ("error", "trained", "state"),
    [
        (None, True, "complete"),
        (Interrupted("saved"), True, "interrupted"),
        (ConfigError("bad"), False, "refused"),
        (GptDistError("disk full"), True, "failed"),
        (LaunchError("busy port"), False, "failed"),
        (RuntimeError("peer closed\nmore"), False, "failed"),
    ],
)
def test_a_run_records_how_it_ends(tmp_path, error, trained, state):
    Status("running", 3, time="2026-01-01").write(tmp_path)  # of an earlier start
    expected = pytest.raises(type(error)) if error else nullcontext()
    with expected, recorded(tmp_path, Launch("python", 0, 1, 0, 1)):
        if trained:
            Status("running", 7).write(tmp_path)
        if error:
            raise error
    status = read_status(tmp_path)
    assert status
    assert (status.state, status.step) == (state, 7 if trained else None)
    assert ("\n" in status.why, bool(status.why)) == (False, error is not None)


def test_only_the_run_that_uses_a_directory_records(tmp_path):
    Status("running", 3).write(tmp_path)
    before = read_status(tmp_path)
    with lock(tmp_path), pytest.raises(ConfigError), recorded(tmp_path, Launch("", 0, 1, 0, 1)):
        raise ConfigError("another run is using it")
    with recorded(tmp_path, Launch("", 1, 2, 1, 2)):
        pass
    with recorded(tmp_path / "absent", Launch("", 0, 1, 0, 1)):
        pass
    assert read_status(tmp_path) == before
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"state": "complete", "x": 1}', "\0"])
def test_a_damaged_record_is_none(tmp_path, content):
    (tmp_path / "status.json").write_text(content)
    assert read_status(tmp_path) is None


def test_no_command_is_a_usage_error():
    done = subprocess.run(
        [sys.executable, "launch/supervise.py"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "give the command that trains after --" in done.stderr
