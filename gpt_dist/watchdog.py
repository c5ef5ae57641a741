"""Watchdog of a run: it names the process that has died, stopped or hung, and ends the others."""

import faulthandler
import json
import math
import os
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from linecache import getline
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from gpt_dist.errors import USER_ERROR, GptDistError, Interrupted
from gpt_dist.rendezvous import LOOPBACK, Launch

UNTIMED = 4
"""Steps of a start whose time tells nothing: they compile, and run ahead of the device."""

MULTIPLE = 10
"""A step may take this much of the longest one, beside the watchdog's seconds."""

TICK, ANSWER = 0.5, 20.0
"""Seconds between judgements, and for the others to answer at the start and at the end."""

_WAITS = re.compile(r"/torch/(distributed|cuda)/|\bwait\(")
"""Code in which a process waits for others or for its device."""

State = dict[str, Any]


class Progress:
    """Current work of the main thread, which notes it; the watchdog's thread reads it."""

    def __init__(self) -> None:
        self._step, self._begun = 0, ("start", time.monotonic())
        self._seen: dict[str, tuple[int, float]] = {}
        """Number of times that each work was done, and the longest time it took."""

    def begin(self, work: str, step: int | None = None) -> None:
        """Note that other work begins; all but a "step" and a "validation" may take any time."""
        (last, since), now = self._begun, time.monotonic()
        number, longest = self._seen.get(last, (0, 0.0))
        self._seen[last] = number + 1, max(longest, now - since) if number >= UNTIMED else 0.0
        self._step, self._begun = self._step if step is None else step, (work, now)

    def longest(self, work: str) -> float:
        """Return the seconds of the longest work of a kind, or 0 where that tells nothing yet."""
        return self._seen.get(work, (0, 0.0))[1]

    def excuse(self, seconds: float) -> None:
        """Leave seconds out of the time of the current work."""
        self._begun = self._begun[0], self._begun[1] + seconds

    def state(self) -> State:
        """Return the step, the seconds in the work, those to allow for it, and the line of code."""
        work, since = self._begun
        number, longest = self._seen.get(work, (0, 0.0))
        is_timed = work in ("step", "validation") and number > UNTIMED
        frame = sys._current_frames()[threading.main_thread().ident or 0]
        file, line = frame.f_code.co_filename, frame.f_lineno
        return {
            "step": self._step,
            "seconds": time.monotonic() - since,
            "allowed": MULTIPLE * longest if is_timed else math.inf,
            "place": f"{frame.f_code.co_name}, {Path(file).name}:{line}",
            "waits": bool(_WAITS.search(file + getline(file, line))),
        }


class _End(NamedTuple):
    """Why the run ends, the rank that has raised it (None: the watchdog found it), and a status."""

    reason: str
    by: int | None = None
    status: int = 1


class Watchdog:
    """Context in which the processes of a run watch each other, each from a thread.

    Rank 0 and each other process tell each other every second or so, by UDP, what they do. Rank 0
    judges the others and tells all of a failure; the others judge rank 0. Of the processes that an
    exception ends, one goes on, to report it, and the others end here.
    """

    def __init__(
        self,
        launch: Launch,
        store: Any,
        seconds: float,
        logs: Path | None,
        progress: Progress,
        record: Callable[[str, int], None] = lambda *_: None,
    ) -> None:
        """Take a store of `open_store`, the seconds of silence to bear (0: any), and a folder.

        `record` is called on rank 0 where it ends here, and if it is lost on a process of each
        host, with the reason and the exit status.
        """
        self._record, self._warned = record, False
        self._launch, self._store, self._seconds = launch, store, seconds or math.inf
        self._logs, self._progress, self._host = logs, progress, socket.gethostname()
        self._interval = max(TICK, seconds / 60, launch.world_size / 500)
        self._peers: dict[int, State] = {}
        """The last message of each, with when it came, and where from."""
        self._failure: tuple[str, int] | None = None
        self._failed_at, self._left, self._decided = math.inf, False, threading.Event()
        self._end: _End | None = None
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> None:
        """Start; collective."""
        launch, store = self._launch, self._store
        if launch.world_size == 1:
            return
        peer: State = {"heard": time.monotonic(), "step": 0, "seconds": 0, "allowed": math.inf}
        port, self._key, address = 0, uuid4().hex, store.get("address/0").decode()
        alone = launch.local_world_size == launch.world_size
        if address == LOOPBACK and not alone:  # rank 0 is where the store is
            address = store.underlying_store.host
        if launch.rank:
            store.wait(["watchdog"], timedelta(seconds=ANSWER))
            peer["host"], self._key, port = json.loads(store.get("watchdog"))
        family, *_, place = socket.getaddrinfo(address, port, type=socket.SOCK_DGRAM)[0]
        self._peers = {0: peer | {"from": place}}
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        self._socket.settimeout(TICK / 5)
        if launch.rank == 0:
            self._socket.bind(place if alone else ("", 0))
            peer |= {"host": "an unknown host", "from": None}
            self._peers = dict.fromkeys(range(1, launch.world_size), peer)
            here = self._host, self._key, self._socket.getsockname()[1]
            store.set("watchdog", json.dumps(here))
        self._thread.start()

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        """Leave; tell the others of an exception, and end here if another process reports one."""
        if not self._peers:
            return
        if error is None or isinstance(error, Interrupted):
            self._left = True
            self._thread.join(2 * TICK)
            return
        self._log(traceback.format_exc())
        is_refusal = isinstance(error, GptDistError)
        self._failure = f"{type(error).__name__}: {error}"[:1000], USER_ERROR if is_refusal else 1
        self._decided.wait(ANSWER)
        if self._end and self._end.by != self._launch.rank:
            self._thread.join()  # it ends the process
        if isinstance(error, GptDistError):
            error.told = True

    def _watch(self) -> None:
        """Receive, judge and send, until this process leaves or ends."""
        due, ticked, left = 0.0, time.monotonic() - TICK, False
        while not (self._end or left):
            while (now := time.monotonic()) < ticked + TICK and not self._end:
                self._receive()
            if now - ticked > self._seconds / 2:  # this process was stopped
                self._peers = {rank: one | {"heard": now} for rank, one in self._peers.items()}
                self._progress.excuse(now - ticked)
            ticked, left = now, self._left
            self._end = self._end or self._judge(now)
            if now >= due or left or self._end or self._failure:
                due = now + self._interval
                self._send()
        if self._end:
            self._finish(self._end)

    def _receive(self) -> None:
        with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):  # or a stranger's
            data, address = self._socket.recvfrom(65536)
            message = json.loads(data)
            if message["key"] == self._key and message["rank"] in self._peers:
                heard = {"heard": time.monotonic(), "from": address}
                self._peers[message["rank"]] = message | heard
                self._end = self._end or (message["end"] and _End(*message["end"]))

    def _send(self) -> None:
        message = self._own() | {"key": self._key, "left": self._left, "end": self._end}
        if self._end and self._end.by is None:  # which rank 0 prints
            message["end"] = self._end._replace(by=0)
        data = json.dumps(message).encode()
        for peer in self._peers.values():
            with suppress(OSError):
                if peer["from"]:
                    self._socket.sendto(data, peer["from"])

    def _own(self) -> State:
        own = {"rank": self._launch.rank, "host": self._host, "failure": self._failure}
        return own | self._progress.state()

    def _judge(self, now: float) -> _End | None:
        """Return why the run ends, if it does."""
        is_main, limit = self._launch.rank == 0, self._seconds
        states = {self._launch.rank: self._own()} | self._peers
        failed = {rank: one["failure"] for rank, one in states.items() if one.get("failure")}
        for rank, (reason, status) in failed.items():
            self._failed_at = min(self._failed_at, now)
            # In training it may come of the end of another process, whose silence tells.
            if is_main and (not states[rank]["step"] or now - self._failed_at > 5 * self._interval):
                return _End(f"rank {rank}: {reason}", rank, status)
            limit = min(limit, 4 * self._interval)
        quiet = {r: now - one["heard"] for r, one in self._peers.items() if not one.get("left")}
        silent = {r: seconds for r, seconds in quiet.items() if "rank" in self._peers[r]}
        unheard = [rank for rank in quiet.keys() - silent.keys() if quiet[rank] > limit]
        if unheard and not self._warned:  # where a network does not let UDP through
            self._warned = True
            print("WARNING: no UDP, so not watched: rank", *sorted(unheard), file=sys.stderr)
        if (longest := max(silent.values(), default=0)) > limit:
            found = [rank for rank, seconds in silent.items() if seconds > 0.8 * limit]
            step = states[self._launch.rank]["step"]
            return self._blame(found, f"no answer for {longest:.0f} s at step {step}")
        seconds, allowed = (max(x[key] for x in states.values()) for key in ("seconds", "allowed"))
        if is_main and not failed and seconds > limit + allowed:
            step = min(one["step"] for one in states.values())
            behind = [rank for rank, one in states.items() if one["step"] == step]
            found = [rank for rank in behind if not states[rank]["waits"]] or behind
            place = f"in {states[found[0]]['place']}, at step {step}"
            return self._blame(found, f"no progress for {seconds:.0f} s {place}")
        return None

    def _blame(self, ranks: list[int], fault: str) -> _End:
        states = {self._launch.rank: self._own()} | self._peers
        hosts = ", ".join(sorted({states[rank]["host"] for rank in ranks}))
        return _End(f"rank {', '.join(map(str, ranks))} on {hosts}: {fault}; ending the run")

    def _finish(self, end: _End) -> None:
        """End this process, unless its main thread has raised why, and reports it."""
        faulthandler.dump_traceback_later(30, exit=True)  # where a disk or the main thread hangs
        self._log(end.reason)
        launch, is_reported = self._launch, end.by == self._launch.rank and bool(self._failure)
        # Of several that have lost rank 0, one a host prints it.
        first = self._peers.get(0, {"host": ""})["host"] == self._host
        if end.by is None and launch.local_rank == first:
            print(f"error: {end.reason}", file=sys.stderr, flush=True)
        for number in range(round(5 * ANSWER / TICK)):
            self._send()
            if number > 4 and (end.by is None or all(one["from"] for one in self._peers.values())):
                break  # all know it, though a datagram may be lost
            self._receive()
        self._decided.set()
        if not is_reported:
            if launch.rank == 0 or (end.by is None and launch.local_rank == first):
                self._record(end.reason, end.status)
            # The process that reports it goes on for a while, and the store of rank 0 stays.
            time.sleep(0 if end.by == 0 else 2 * TICK)
            os._exit(end.status)

    def _log(self, text: str) -> None:
        """Write a text and the stacks of all threads."""
        if not self._logs:
            return
        with suppress(OSError):
            self._logs.mkdir(exist_ok=True)
            with (self._logs / f"rank-{self._launch.rank}.log").open("a") as file:
                print(time.strftime("%Y-%m-%d %H:%M:%S"), text, file=file, flush=True)
                faulthandler.dump_traceback(file)
