"""Time the preparing and reading of text, beside other libraries, and print one table.

Run by `make bench-data`, or with a folder of texts by `make bench-data DATA=FOLDER`. The sides of a
comparison run in turn; the table shows medians. Building is timed by the clock, start-up included,
the rest by the processor time of one thread.
"""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import sentencepiece
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer as Backend

from data_prep import encoder
from data_prep.encoder import Encoder
from data_prep.manifest import BuiltFolder
from gpt_dist.data.tokenizers.folder import open_tokenizer, tokenizer_files
from tests.benchmarks import data_peers, data_reading

ROUNDS = 5
BUILD_ROUNDS = 3  # datatrove takes a minute
SAMPLE = Path("data_prep/sample_books")
COPIES = 6
ENCODED_BYTES = 16_000_000
OURS = "this project"

Sides = dict[str, Callable[[], float]]


class Report:
    """Table with one comparison a row."""

    def __init__(self) -> None:
        self.table = Table("what", "ours", "peer", "ratio", title_justify="left")

    def add(self, what: str, unit: str, ours: float, peer: float | None, name: str) -> None:
        """Add a row; the ratio is ours by the peer's."""
        theirs = "" if peer is None else f"{peer:,.3g} {name}"
        ratio = "" if not peer else f"{ours / peer:.2f}"
        self.table.add_row(f"{what}, {unit}", f"{ours:,.3g}", theirs or name, ratio)


def medians(sides: Sides, rounds: int = ROUNDS) -> dict[str, float]:
    """Return the median of each side's results, the sides run in turn."""
    results: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, measure in sides.items():
            results[name].append(measure())
    return {name: statistics.median(values) for name, values in results.items()}


def write_books(folder: Path) -> None:
    """Write the bundled books several times, the words of a line in another order each time."""
    for copy in range(COPIES):
        draws = random.Random(copy)
        for book in sorted(SAMPLE.glob("*.txt")):
            lines = [line.split() for line in book.read_text(encoding="utf-8").split("\n")]
            for line in lines if copy else ():
                draws.shuffle(line)
            text = "\n".join(map(" ".join, lines))
            (folder / f"{copy:02}-{book.name}").write_text(text, encoding="utf-8")


def prepare(books: Path, tokens: Path, *options: str) -> float:
    """Build a token folder through the command line and return the seconds."""
    return run("data_prep", "build", str(books), "--output", str(tokens), *options)


def run(module: str, *arguments: str) -> float:
    """Run a module and return the seconds; exit with its output if it fails."""
    begin = time.perf_counter()
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return time.perf_counter() - begin


@contextmanager
def without_gigatoken() -> Iterator[None]:
    """Hide gigatoken from the project."""
    hidden, encoder.gigatoken = encoder.gigatoken, None
    yield
    encoder.gigatoken = hidden


def compare_tokenizing(report: Report, folder: Path, books: Path) -> None:
    """Compare the encoding of clean text by one thread."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    texts, size = [], 0
    for file in sorted(books.rglob("*.txt")) or sorted(SAMPLE.glob("*.txt")):
        texts.append(file.read_text(encoding="utf-8", errors="replace").lower())
        size += len(texts[-1].encode())
        if size > ENCODED_BYTES:
            break
    content = (folder / "tokenizer.model").read_bytes()
    processor = sentencepiece.SentencePieceProcessor(model_proto=content)
    backend = Backend.from_str(tokenizer_files(folder)["tokenizer.json"].decode())

    def rate(encode: Callable[[str], object]) -> float:
        begin = time.process_time()
        for text in texts:
            encode(text)
        return size / 1e6 / (time.process_time() - begin)

    def with_cache() -> float:
        with without_gigatoken():
            return rate(Encoder(tokenizer).encode)

    tokenizer = open_tokenizer(folder)
    sides: Sides = {
        OURS: lambda: rate(Encoder(tokenizer).encode),
        "cache": with_cache,
        "sentencepiece": lambda: rate(processor.encode),
        "tokenizers": lambda: rate(lambda text: backend.encode(text, add_special_tokens=False).ids),
        "megatron-core": lambda: data_peers.rate_of_megatron(rate, processor, folder),
    }
    if encoder.gigatoken:
        load = encoder.gigatoken.Tokenizer.from_sentencepiece
        sides["gigatoken"] = lambda: rate(load(content).encode)
    found = medians(sides)
    method = Encoder(tokenizer).method
    for name in list(sides)[2:]:
        report.add(f"tokenizing with {method}", "MB/s", found[OURS], found[name], name)
    if not encoder.gigatoken:
        report.add("tokenizing", "MB/s", found[OURS], None, "gigatoken is not installed")
    report.add(
        "tokenizing with the cache of words",
        "MB/s",
        found["cache"],
        found["sentencepiece"],
        "sentencepiece",
    )


def compare_builds(report: Report, temporary: Path, tokenizer: Path, books: Path) -> None:
    """Compare whole builds with one and two workers, and datatrove's with as many."""
    files = [file for file in books.rglob("*") if file.is_file()]
    only_plain = all(file.suffix == ".txt" for file in files)

    def ours(workers: int) -> float:
        with tempfile.TemporaryDirectory(dir=temporary) as folder:
            tokens = Path(folder) / "tokens"
            options = ("--tokenizer", str(tokenizer), "--workers", str(workers))
            seconds = prepare(books, tokens, *options)
            return BuiltFolder(tokens).manifest.totals.text_bytes / 1e6 / seconds

    def theirs(workers: int) -> float:
        with tempfile.TemporaryDirectory(dir=temporary) as folder:
            arguments = str(books), folder, str(workers), str(converted)
            seconds = run("tests.benchmarks.data_peers", *arguments)
            return sum(file.stat().st_size for file in files) / 1e6 / seconds

    converted = temporary / "tokenizer.json"
    converted.write_bytes(tokenizer_files(tokenizer)["tokenizer.json"])
    sides: Sides = {"1": lambda: ours(1), "2": lambda: ours(2)}
    absent = data_peers.absent_packages()
    if only_plain and not absent:
        sides |= {"datatrove 1": lambda: theirs(1), "datatrove 2": lambda: theirs(2)}
    found = medians(sides, BUILD_ROUNDS)
    peer = "datatrove" if only_plain else "not run: datatrove's pipeline reads .txt"
    peer = f"{absent} is not installed" if absent else peer
    for workers in ("1", "2"):
        what = f"build with {workers} worker{'s' * (workers > '1')}"
        report.add(what, "MB/s", found[workers], found.get(f"datatrove {workers}"), peer)
    report.add("build with 2 workers", "MB/s", found["2"], found["1"], "with 1 worker")


def compare_reading(report: Report, temporary: Path) -> None:
    """Compare the reading of real and sparse token folders with GPTDataset."""
    for tokens, kind in ((10**9, "random"), (10**12, "sparse")):
        folder = temporary / kind
        data_reading.write_tokens(folder, tokens, real=kind == "random")
        # Megatron's index of the sparse tokens takes 16 GB.
        peer = kind == "random"
        sides = [OURS, "megatron-core"] if peer else [OURS]
        runs = [{side: data_reading.measure(side, folder) for side in sides} for _ in range(ROUNDS)]
        for what, unit, key in (
            ("first batch", "s", "seconds"),
            ("memory of the first batch", "MB", "megabytes"),
            ("reading", "M tokens/s", "rate"),
        ):
            ours, theirs = (
                statistics.median(run[side][key] for run in runs) if side in sides else None
                for side in (OURS, "megatron-core")
            )
            name = "GPTDataset" if peer else "not run: its index takes 16 GB"
            report.add(f"{what} of {tokens:.0e} {kind} tokens", unit, ours or 0.0, theirs, name)


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as name:
        temporary = Path(name)
        books = Path(sys.argv[1]) if len(sys.argv) > 1 else temporary / "books"
        if len(sys.argv) < 2:
            books.mkdir()
            write_books(books)
        tokenizer = temporary / "tokenizer"
        prepare(SAMPLE, tokenizer, "--vocab-size", "16000")
        report = Report()
        compare_tokenizing(report, tokenizer, books)
        compare_builds(report, temporary, tokenizer, books)
        compare_reading(report, temporary)
        Console().print(report.table)


if __name__ == "__main__":
    main()
