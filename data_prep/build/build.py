"""Build a token folder from books: run the steps of `python -m data_prep build` in order."""

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from data_prep.build.documents import CleanDocument
from data_prep.build.encode import encode_splits
from data_prep.build.gather import Gathering, identity
from data_prep.build.jobs import HashJob, grouped
from data_prep.build.manifest import make_manifest
from data_prep.build.selection import Selection, sample_lines, share_held_out, split_documents
from data_prep.build.work import Work, work_folder
from data_prep.duplicates import find_duplicates
from data_prep.manifest import BuildManifest, BuildOptions
from data_prep.pool import Pool
from data_prep.progress import Progress
from data_prep.reading.documents import LeftOut, ReadOptions
from data_prep.sources import Source, find_sources
from data_prep.steps import Steps
from data_prep.tokenizer import train_sentencepiece
from gpt_dist.data.tokenizers.folder import SENTENCEPIECE_NAME, open_tokenizer, tokenizer_file
from gpt_dist.data.tokens import folder as tokens
from gpt_dist.data.tokens.folder import TokenizerEntry
from gpt_dist.errors import DataError
from gpt_dist.files.folders import publish

_HASHED_BYTES = 64 << 20


@dataclass(frozen=True)
class BuildRequest:
    """Everything that decides a token folder."""

    inputs: tuple[Path, ...]
    output: Path
    """The folder to make. It must be absent or empty."""
    options: BuildOptions
    reading: ReadOptions
    steps: Steps
    tokenizer: Path | None
    """A folder whose tokenizer is used, or None to train a tokenizer."""


@dataclass(frozen=True)
class Built:
    """Manifest of a new token folder, and the share of the kept bytes that it holds out."""

    manifest: BuildManifest
    held_out: float


def build(request: BuildRequest, pool: Pool, progress: Progress) -> Built:
    """Make a token folder, every byte of which depends on the request alone.

    What is done is kept in a folder beside the output until the output is there, so that a build
    that was interrupted or failed does only what is missing when it is started again.

    Raises:
        DataError: An input, an option or the disk is at fault.
    """
    options = request.options
    with work_folder(request.output) as (folder, output):
        work = Work(folder, pool)
        sources, skipped = find_sources(request.inputs, options.follow_links, options.read_suffixes)
        states = [identity(source) for source in sources]
        hashes = _hash_sources(sources, work, progress)
        corpus = _gather(request, sources, skipped, work, progress)
        documents = split_documents(corpus.kept, options.validation_fraction)
        tokenizer = _put_tokenizer(request, documents["train"], folder / "tokenizer", progress)
        result = folder / "tokens"
        shutil.rmtree(result, ignore_errors=True)
        assert options.shard_mb is not None
        splits = encode_splits(documents, tokenizer, options.shard_mb, work, result, progress)
        shutil.copyfile(folder / "tokenizer" / tokenizer.name, result / tokenizer.name)
        for source, state in zip(sources, states, strict=True):
            if identity(source) != state:
                raise DataError(f"{source.path}: changed during the build; run the command again")
        manifest = make_manifest(
            options, sources, hashes, corpus, splits, tokenizer, open_tokenizer(result)
        )
        text = manifest.model_dump_json(indent=1) + "\n"
        (result / tokens.MANIFEST_NAME).write_text(text)
        publish(result, output)
    return Built(manifest, share_held_out(documents))


def _hash_sources(sources: list[Source], work: Work, progress: Progress) -> list[str]:
    sized = [(source, source.path.stat().st_size) for source in sources]
    jobs = [
        HashJob(sources=group, prefix=work.prefix("hashes", [identity(one) for one in group]))
        for group in grouped(sized, _HASHED_BYTES)
    ]
    with progress.stage("hashing sources", "bytes", sum(size for _, size in sized)) as advance:

        def done(job: HashJob) -> None:
            advance(sum(source.path.stat().st_size for source in job.sources))

        results = work.results(jobs, done)
    return [digest for result in results for digest in result.digests]


def _gather(
    request: BuildRequest,
    sources: list[Source],
    skipped: list[LeftOut],
    work: Work,
    progress: Progress,
) -> Selection:
    """Clean all documents, and choose those to keep: the first of each text that is long enough.

    If duplicates are to be kept, others of the same text are kept too.
    """
    options = request.options
    corpus = Selection(keeps_equal=options.near_duplicates is None)
    gathering = Gathering(
        sources, request.reading, request.steps, bool(options.near_duplicates), work
    )
    with progress.stage("cleaning", "bytes", None) as advance:
        done = gathering.run(advance)
    for job, cleaned in done:
        corpus.add(job, cleaned, options.min_characters)
    corpus.leave_out(skipped)
    corpus.check_not_empty(options.min_characters)
    if options.near_duplicates:
        with progress.stage("finding duplicates", "jobs", None) as advance:
            kept = {document.number for document in corpus.kept}
            findings = find_duplicates(
                corpus.places,
                [job.sketch for job, _ in done],
                options.near_duplicates,
                work.pool.map,
                work.folder / "duplicates",
                advance,
                passage_words=options.passage_words,
                left_out=set(range(len(corpus.places))) - kept,
            )
        corpus.apply(findings, options.min_characters)
        corpus.check_not_empty(options.min_characters)
    return corpus


def _put_tokenizer(
    request: BuildRequest, documents: list[CleanDocument], folder: Path, progress: Progress
) -> TokenizerEntry:
    """Put the tokenizer, given or trained, into an otherwise empty folder."""
    options = request.options
    if request.tokenizer:
        name, content = tokenizer_file(request.tokenizer)
    else:
        assert options.tokenizer_sample_mb is not None
        assert options.seed is not None
        lines = sample_lines(documents, options.tokenizer_sample_mb * 1_000_000, options.seed)
        with progress.stage("training the tokenizer", "tokens", None) as advance:
            name, content = SENTENCEPIECE_NAME, train_sentencepiece(lines, options.vocab_size)
            advance(options.vocab_size)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / name).write_bytes(content)
    return TokenizerEntry(name=name, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
