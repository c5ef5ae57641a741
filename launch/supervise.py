"""Start a command that trains, and start it again after a failure, until the run is complete.

The run goes on from its newest whole checkpoint. COMMAND is that of any launcher. SIGTERM, SIGUSR1
and Ctrl-C make the run save and end. Exit status: 0 complete, 75 interrupted and saved (the same
command goes on), 2 refused, 1 failed.
"""

import argparse
import math
import shlex
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from gpt_dist import command
from gpt_dist.errors import USER_ERROR, ConfigError, GptDistError, LaunchError
from gpt_dist.files.folders import write_result
from gpt_dist.train.status import Status, lock, read_status
from supervision.commands import Command, check_safe, parse_command, resize, resuming
from supervision.hosts import choose_hosts, read_hostfile
from supervision.log import Log
from supervision.processes import Processes, adopt_orphans
from supervision.verdict import Verdict, judge

EXAMPLE = (
    "python launch/supervise.py -- deepspeed --num_gpus 2 launch/pretrain.py "
    "configs/pretrain/tiny.yaml data.path=tokens"
)
EXIT_STATUS = {
    "complete": 0,
    "interrupted": command.RESUMABLE,
    "refused": USER_ERROR,
    "failed": 1,
}
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
POLL_SECONDS, LOOK_SECONDS = 0.1, 1.0
LAUNCHER_SECONDS = 20.0
"""Time that a launcher may go on after the record says that the run has ended."""

LONGEST_DELAY = 300.0
STEP = "step-" + "[0-9]" * 8


def parse() -> tuple[argparse.Namespace, Command]:
    parser = command.argument_parser(__doc__ or "", EXAMPLE)
    parser.usage = "%(prog)s [options] -- COMMAND ..."
    parser.add_argument(
        "--max-restarts",
        type=_whole,
        default=3,
        metavar="N",
        help="restarts in a row that make no checkpoint, after which it gives up (default 3)",
    )
    parser.add_argument(
        "--hostfile",
        type=Path,
        metavar="FILE",
        help="hosts that may be used, in lines `node1 slots=8`; read again before each start, "
        "which takes the largest number of processes that the configuration allows",
    )
    seconds = command.temperature  # a finite number of 0 or more
    parser.add_argument(
        "--back-off",
        type=seconds,
        default=5.0,
        metavar="SECONDS",
        help="wait before the first restart, doubled for each further one that makes no "
        f"checkpoint, up to {LONGEST_DELAY:.0f} (default 5)",
    )
    parser.add_argument(
        "--grace",
        type=seconds,
        default=300.0,
        metavar="SECONDS",
        help="time that processes have to save and end before they are killed (default 300)",
    )
    place = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    arguments, words = parser.parse_args(sys.argv[1:place]), sys.argv[place + 1 :]
    if not words:
        parser.error("give the command that trains after --")
    return arguments, parse_command(words)


def _whole(text: str) -> int:
    if text.isdecimal():
        return int(text)
    raise argparse.ArgumentTypeError(f"{text} is not a whole number of 0 or more")


@dataclass
class Starts:
    """The words of each start of a command, for the hosts that there are then."""

    command: Command
    hostfile: Path | None
    _first_host: str | None = None
    """Host of rank 0 in the first start."""

    def next(self, made_checkpoints: bool) -> tuple[list[str], dict[str, int]]:
        """Return the words, and the processes by host where there is a hostfile to write.

        Raises LaunchError or ConfigError where no start is possible or a launcher would run
        something as code.
        """
        words, hosts = list(self.command.words), {}
        if self.hostfile:
            hosts = choose_hosts(self.command.config, read_hostfile(self.hostfile), self.hostfile)
            first = next(iter(hosts))
            self._first_host = self._first_host or first
            words = resize(self.command, hosts, self.written, first != self._first_host)
        check_safe(words, hosts or None)
        return resuming(words, self.command.config, made_checkpoints), hosts

    @property
    def written(self) -> Path:
        """The hostfile for the launcher."""
        return self.command.directory / "hostfile"


@dataclass
class Supervisor:
    """Starts one run until it ends."""

    starts: Starts
    log: Log
    max_restarts: int
    back_off: float
    grace: float
    _signal: signal.Signals | None = None
    _seen: set[tuple[Path, int]] = field(default_factory=set)
    """Checkpoints that there have been, each with the time when it was made."""
    _made: bool = False
    """True once a start has made a checkpoint."""

    def note(self, number: int, _: object) -> None:
        """Note the first signal; the loops act on it."""
        self._signal = self._signal or signal.Signals(number)

    @property
    def _directory(self) -> Path:
        return self.starts.command.directory

    def run(self) -> str:
        """Start the run until it is complete, interrupted, refused or given up: its state."""
        self._find_new()
        restarts = 0
        for number in count(1):
            try:
                verdict = self._start(number)
            except LaunchError as error:
                self.log.say(f"given up: {error}")
                return "failed"
            self.log.say(f"start {number} {verdict.state}: {verdict.why}")
            if verdict.is_final:
                return verdict.state
            if self._find_new():
                self._made, restarts = True, 0
            if self._signal:
                break
            if restarts == self.max_restarts:
                self.log.say(f"given up after {restarts} restart(s) without a new checkpoint")
                break
            restarts += 1
            if self._wait(min(self.back_off * 2 ** (restarts - 1), LONGEST_DELAY)):
                return "interrupted"
        return "failed"

    def _start(self, number: int) -> Verdict:
        """Start the command once, and return how it ended, when no process is left.

        Raises LaunchError where one is left, and cannot be ended from here.
        """
        before = read_status(self._directory)
        try:
            self._wait_until_unused(at_start=True)
            words = self._prepare()
            newest = max(self._directory.glob(f"checkpoints/{STEP}"), default=None)
            origin = f"from {newest.name}" if newest else "without a checkpoint"
            self.log.say(f"start {number} {origin}: {shlex.join(words)}")
            processes = Processes(words, self.starts.command.launcher, self.starts.command.script)
        except GptDistError as error:
            return Verdict("refused" if number == 1 else "failed", str(error))
        self._supervise(processes, before)
        told = processes.end(self.grace, self.log.say)
        self._wait_until_unused()
        stopped = self._signal is not None
        after = read_status(self._directory)
        return judge(before, after, processes.exit_status or 0, stopped, told)

    def _prepare(self) -> list[str]:
        """Return the words of the next start, with its hostfile written."""
        words, hosts = self.starts.next(self._made)
        if hosts:
            lines = [f"{host} slots={slots}\n" for host, slots in hosts.items()]
            write_result(self.starts.written, "".join(lines))
            names = ", ".join(hosts)
            self.log.say(f"{sum(hosts.values())} processes on {names} ({self.starts.hostfile})")
        return words

    def _supervise(self, processes: Processes, before: Status | None) -> None:
        """Return once the launcher has ended; on a signal, have the run save and end meanwhile.

        Returns too if the record says that the run has ended, and the launcher goes on: it waits
        for a process that stands still.
        """
        told, looked, ends = 0.0, 0.0, math.inf
        while processes.exit_status is None and (now := time.monotonic()) < ends:
            if now > looked + LOOK_SECONDS:
                looked, status = now, read_status(self._directory)
                goes_on = status is None or status == before or status.state == "running"
                ends = math.inf if goes_on else min(ends, now + LAUNCHER_SECONDS)
            if self._signal:
                if not told:
                    told = time.monotonic()
                    self.log.say(f"{self._signal.name}: the run is told to save and end")
                processes.interrupt()
                if time.monotonic() - told > self.grace:
                    self.log.say(f"it has not ended within {self.grace:.0f} s: killed")
                    processes.kill()
            time.sleep(POLL_SECONDS)

    def _wait_until_unused(self, at_start: bool = False) -> None:
        """Wait for a reporting process that holds the lock of the run and is not below this one.

        It is on another host, or of a supervisor that was killed. Raises LaunchError if it stays,
        or, at a start, on a signal.
        """
        deadline, said = time.monotonic() + self.grace, False
        while True:
            try:
                return lock(self._directory).close()
            except ConfigError as error:
                if not said:
                    said = True
                    self.log.say(f"waiting up to {self.grace:.0f} s: {error}")
                if time.monotonic() > deadline or (at_start and self._signal):
                    status = read_status(self._directory)
                    which = f"process {status.process} on {status.host}" if status else "a process"
                    raise LaunchError(f"{which} does not end: {error}") from None
            time.sleep(POLL_SECONDS)

    def _find_new(self) -> bool:
        """Return whether there are checkpoints that have not been seen yet."""
        found = set()
        for pattern in (f"checkpoints/{STEP}", f"seed-*/checkpoints/{STEP}"):
            for path in self._directory.glob(pattern):
                with suppress(FileNotFoundError):  # an older one, which is removed now
                    found.add((path, path.stat().st_mtime_ns))
        new = found - self._seen
        self._seen |= new
        return bool(new)

    def _wait(self, seconds: float) -> bool:
        """Wait before a restart, and return whether a signal has come."""
        self.log.say(f"starting again in {seconds:.0f} s")
        deadline = time.monotonic() + seconds
        while not self._signal and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        if self._signal:
            self.log.say(f"{self._signal.name}: not started again")
        return self._signal is not None


def main(given: tuple[argparse.Namespace, Command]) -> None:
    arguments, supervised = given
    starts = Starts(supervised, arguments.hostfile)
    starts.next(made_checkpoints=False)  # refuses what it can before it makes the directory
    log = Log(supervised.directory)
    supervisor = Supervisor(
        starts, log, arguments.max_restarts, arguments.back_off, arguments.grace
    )
    for number in SIGNALS:
        signal.signal(number, supervisor.note)
    adopt_orphans()
    sys.exit(EXIT_STATUS[supervisor.run()])


if __name__ == "__main__":
    command.run(parse, main)
