"""The command to supervise: its launcher, its script, its configuration, and its size."""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpt_dist.command import config_parser
from gpt_dist.config import Config
from gpt_dist.config.file import load_config
from gpt_dist.errors import LaunchError
from supervision.hosts import check_exports, check_host_names, check_remote, is_local

DEFAULT_HOSTFILE = Path("/job/hostfile")
"""The hostfile that `deepspeed` reads unless it is told of another."""

SCRIPTS = ("pretrain.py", "finetune.py")
_LAUNCHERS = {
    "deepspeed": "deepspeed",
    "deepspeed.launcher.runner": "deepspeed",
    "torchrun": "torchrun",
    "torch.distributed.run": "torchrun",
    "mpirun": "mpirun",
    "mpiexec": "mpirun",
    "srun": "srun",
}
"""Launchers by the name of their program or module."""

Options = tuple[str, ...]
_HOSTFILE: Options = ("--hostfile", "-H")
_MASTER_ADDRESS: Options = ("--master_addr",)
_NUM_GPUS: Options = ("--num_gpus", "--num_accelerators")
_NUM_NODES: Options = ("--num_nodes",)
_FILTERS: Options = ("--include", "-i", "--exclude", "-e")
_PROCESSES_A_NODE: Options = ("--nproc-per-node", "--nproc_per_node")
_NODES: Options = ("--nnodes",)
_MPI_COUNT: Options = ("-n", "-np", "--n", "--np", "-c")
_MPI_HOSTFILE: Options = ("--hostfile", "-hostfile", "--machinefile", "-machinefile")
_MPI_PLACES: Options = ("--host", "-host", "-H", "-N", "-npernode", "--npernode", "-ppn")


@dataclass(frozen=True)
class Command:
    """A command that trains: words of the launcher, then the script and its arguments."""

    words: tuple[str, ...]
    launcher: str
    """deepspeed, torchrun, mpirun, srun, or python for a single process."""
    launcher_place: int
    script_place: int
    config: Config

    @property
    def directory(self) -> Path:
        """The directory of the run."""
        return Path(self.config.run.directory)

    @property
    def script(self) -> str:
        """The script as the command names it."""
        return self.words[self.script_place]

    @property
    def options(self) -> tuple[str, ...]:
        """The launcher's own options."""
        return self.words[self.launcher_place + 1 : self.script_place]

    @property
    def arguments(self) -> tuple[str, ...]:
        """Words that each process gets: the script and its arguments."""
        return self.words[self.script_place :]

    @property
    def hostfile(self) -> Path | None:
        """The hostfile that the launcher is told to read."""
        names = {"deepspeed": _HOSTFILE, "mpirun": _MPI_HOSTFILE}.get(self.launcher, ())
        if found := value_of(self.options, names):
            return Path(found)
        default = self.launcher == "deepspeed" and DEFAULT_HOSTFILE.is_file()
        return DEFAULT_HOSTFILE if default else None

    def with_options(self, options: Sequence[str]) -> list[str]:
        """Return the words with other options of the launcher."""
        before = self.words[: self.launcher_place + 1]
        return [*before, *options, *self.arguments]


def parse_command(words: Sequence[str]) -> Command:
    """Find launcher, script and configuration; LaunchError or ConfigError where one is missing."""
    found = [place for place, word in enumerate(words) if Path(word).name in SCRIPTS]
    if not found:
        raise LaunchError(
            "the command after -- names neither launch/pretrain.py nor launch/finetune.py; give "
            "it whole, as in -- deepspeed launch/pretrain.py CONFIG.yaml"
        )
    script = found[0]
    launchers = [place for place in range(script) if Path(words[place]).name in _LAUNCHERS]
    launcher = _LAUNCHERS[Path(words[launchers[0]]).name] if launchers else "python"
    arguments = config_parser("", "").parse_args(list(words[script + 1 :]))
    config = load_config(arguments.config, arguments.overrides)
    place = launchers[0] if launchers else script - 1
    return Command(tuple(words), launcher, place, script, config)


def value_of(words: Sequence[str], names: Options) -> str | None:
    """Return the value of an option in one of its spellings, if it is given."""
    for place, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name in names:
            return value if equals else next(iter(words[place + 1 : place + 2]), None)
    return None


def without(words: Sequence[str], names: Options) -> list[str]:
    """Return the words without an option and its value."""
    kept, place = [], 0
    while place < len(words):
        name, equals, _ = words[place].partition("=")
        if name in names:
            place += 1 if equals else 2
        else:
            kept.append(words[place])
            place += 1
    return kept


def resize(command: Command, hosts: Mapping[str, int], written: Path, moved: bool) -> list[str]:
    """Return the command for other hosts, with the number of processes on each.

    Args:
        command: The command that the user gave.
        hosts: Processes by host; the first one is rank 0's.
        written: Hostfile with these lines, for launchers that read one.
        moved: Whether rank 0 is on another host than at first.

    Raises:
        LaunchError: The supervisor cannot resize this command.
    """
    options = list(command.options)
    count = str(sum(hosts.values()))
    if command.launcher == "deepspeed":
        return command.with_options([*_deepspeed(options, hosts, written, moved)])
    if command.launcher == "mpirun":
        _refuse(options, _MPI_PLACES, "mpirun")
        kept = without(without(options, _MPI_COUNT), _MPI_HOSTFILE)
        return command.with_options(["-n", count, "--hostfile", str(written), *kept])
    if command.launcher == "torchrun":
        if len(hosts) > 1 or value_of(options, _NODES) not in (None, "1", "1:1"):
            raise LaunchError(
                "--hostfile: torchrun starts the processes of its own host only, so it can be "
                "resized on one host; use deepspeed or mpirun for several"
            )
        kept = without(options, _PROCESSES_A_NODE)
        return command.with_options(["--nproc-per-node", count, *kept])
    raise LaunchError(
        f"--hostfile: a command of {command.launcher} cannot be resized; "
        + ("SLURM decides its hosts: " if command.launcher == "srun" else "")
        + "leave --hostfile out, or use deepspeed, torchrun or mpirun"
    )


def _deepspeed(
    options: list[str], hosts: Mapping[str, int], written: Path, moved: bool
) -> list[str]:
    _refuse(options, _FILTERS, "deepspeed")
    for names in (_HOSTFILE, _NUM_GPUS, _NUM_NODES):
        options = without(options, names)
    first, *others = hosts
    if moved and value_of(options, _MASTER_ADDRESS):
        options = [*without(options, _MASTER_ADDRESS), _MASTER_ADDRESS[0], first]
    if not others and is_local(first):
        # With a hostfile, DeepSpeed asks for ssh even to this host.
        return ["--num_gpus", str(hosts[first]), *options]
    if not others:
        # DeepSpeed starts the processes of a lone host here, whatever its name is.
        options = ["--force_multi", *(word for word in options if word != "--force_multi")]
    return ["--hostfile", str(written), *options]


def _refuse(options: Sequence[str], names: Options, launcher: str) -> None:
    given = [word for word in options if word.partition("=")[0] in names]
    if given:
        raise LaunchError(
            f"--hostfile: it decides the hosts; leave {given[0]} out of the {launcher} command"
        )


def resuming(words: Sequence[str], config: Config, made_checkpoints: bool) -> list[str]:
    """Return a command that goes on from the checkpoints that an earlier start of it has made."""
    again = made_checkpoints and config.training.resume != "auto"
    return [*words, "training.resume=auto"] if again else list(words)


def check_safe(words: Sequence[str], hosts: Collection[str] | None = None) -> None:
    """Refuse a command that cannot be supervised, or whose hosts or arguments would run as code.

    `hosts` are those of a hostfile that is not written yet. Raises LaunchError.
    """
    command = parse_command(words)
    if hosts is None and command.hostfile and command.hostfile.is_file():
        hosts = check_host_names(command.hostfile)
    if command.launcher == "torchrun" and value_of(command.options, _NODES) not in (None, "1"):
        raise LaunchError(
            "--nnodes: torchrun is started on each host, and the supervisor starts it again on its "
            "own only; use torchrun --max-restarts, or deepspeed"
        )
    by_shell = len(hosts or ()) > 1 or "--force_multi" in command.options
    if command.launcher == "deepspeed" and by_shell and "--no_ssh" not in command.options:
        check_remote(command.options, command.arguments)
        check_exports(os.environ, Path.cwd())
