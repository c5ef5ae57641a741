"""Hosts: the lines of a hostfile, the names that are safe, and the largest legal world size."""

import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

import psutil

from gpt_dist.config import Config
from gpt_dist.config.resolution import check_layout
from gpt_dist.errors import ConfigError, LaunchError

_HOST_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")
_LINE = re.compile(r"(\S+)\s+slots=(\d+)(\s+#.*)?")
_PLAIN = re.compile(r"[\w@+=:,./-]+", re.ASCII)
"""A word that a shell and pdsh take as it is: pdsh replaces %h, %u and %n."""

_QUOTED = re.compile(r'[^$`\\!%\n\r"]*', re.ASCII)
"""Text that DeepSpeed may put between double quotes."""

_EXPORTED = ("MLFLOW", "PYTHON", "MV2", "UCX", "NCCL")
"""Beginnings of the names of variables that DeepSpeed sets by the shell of every host."""


def read_hostfile(path: Path) -> dict[str, int]:
    """Return the slots of each host of DeepSpeed's hostfile; LaunchError for any other line."""
    hosts: dict[str, int] = {}
    for line in _lines(path):
        if not (match := _LINE.fullmatch(line)):
            raise LaunchError(f"{path}: {line!r} is not a line such as `node1 slots=8`")
        host, slots = match[1], int(match[2])
        check_host(host, str(path))
        if host in hosts:
            raise LaunchError(f"{path}: {host} is there twice; give each host one line")
        hosts[host] = slots
    return {host: slots for host, slots in hosts.items() if slots}


def check_host_names(path: Path) -> list[str]:
    """Return the hosts of any launcher's hostfile; LaunchError where one is no plain name."""
    names = [re.sub(r":\d+$", "", line.split()[0]) for line in _lines(path)]
    for name in names:
        check_host(name, str(path))
    return names


def _lines(path: Path) -> Iterator[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LaunchError(f"{path}: not a readable hostfile: {error}") from None
    return (line for raw in text.splitlines() if (line := raw.strip()) and line[0] != "#")


def check_host(name: str, where: str) -> None:
    """Refuse what is no plain host name or address: ssh takes `-o…` as an option, and runs it."""
    if not _HOST_NAME.fullmatch(name):
        with suppress(ValueError):
            ip_address(name)
            return
        raise LaunchError(f"{where}: {name!r} is not a plain host name or address; correct it")


def is_local(host: str) -> bool:
    """Return whether a host is this one, by its name or by an address of an interface."""
    own = {socket.gethostname(), socket.gethostname().partition(".")[0]}
    for interface in psutil.net_if_addrs().values():
        own |= {entry.address for entry in interface}
    with suppress(OSError, ValueError):
        address = socket.gethostbyname(host)
        return bool({host, address} & own) or ip_address(address).is_loopback
    return host in own


def choose_hosts(config: Config, hosts: Mapping[str, int], path: Path) -> dict[str, int]:
    """Return processes by host for the largest world size that the configuration allows.

    The global batch stays, so the size must divide it as `check_layout` says. Hosts are filled in
    their order. Raises LaunchError where no size is legal.
    """
    slots, reason = sum(hosts.values()), "it lists no slots"
    for world_size in range(slots, 0, -1):
        try:
            check_layout(config, world_size, "cuda")  # a run without a GPU checks fp16 itself
        except ConfigError as error:
            reason = str(error)
        else:
            return dict(_fill(hosts, world_size))
    raise LaunchError(f"{path}: no number of processes up to its {slots} slots is legal: {reason}")


def _fill(hosts: Mapping[str, int], world_size: int) -> Iterator[tuple[str, int]]:
    for host, slots in hosts.items():
        if count := min(slots, world_size):
            yield host, count
            world_size -= count


def check_remote(options: Iterable[str], arguments: Iterable[str]) -> None:
    """Refuse what DeepSpeed would have a shell of the other hosts read as more than a word.

    Args:
        options: Options of `deepspeed`.
        arguments: The script and its arguments, which DeepSpeed puts between double quotes where
            they hold a space.
    """
    for word in options:
        if not all(map(_PLAIN.fullmatch, word.split(" "))):
            raise _unsafe(word)
    for word in arguments:
        if not (_PLAIN.fullmatch(word) or (" " in word and _QUOTED.fullmatch(word))):
            raise _unsafe(word)


def _unsafe(word: str) -> LaunchError:
    return LaunchError(
        f"{word!r}: deepspeed hands this to a shell of every host, which would not read it as it "
        "is; put the value into CONFIG.yaml, or choose another"
    )


def check_exports(environment: Mapping[str, str], folder: Path) -> None:
    """Refuse exported variables and a current directory that are more than words to a shell."""
    if not _PLAIN.fullmatch(str(folder)):
        raise LaunchError(f"{folder}: deepspeed has every host's shell enter it; use a plain path")
    pairs = [
        (name, value, "the environment")
        for name, value in environment.items()
        if name.startswith(_EXPORTED)
    ]
    name = environment.get("DS_ENV_FILE", ".deepspeed_env")
    for file in (Path.home() / name, folder / name):
        with suppress(FileNotFoundError):
            for line in file.read_text().splitlines():
                name, _, value = line.partition("=")
                pairs.append((name, value, str(file)))
    for name, value, where in pairs:
        if not (re.fullmatch(r"\w+", name.strip(), re.ASCII) and _QUOTED.fullmatch(value)):
            raise LaunchError(
                f"{name} of {where}: deepspeed hands it to a shell of every host, which would not "
                "read it as it is; unset it, or give it another value"
            )
