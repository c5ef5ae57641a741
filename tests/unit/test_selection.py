"""Test that the wanted share is held out, whatever the number and sizes of documents."""

import random
from pathlib import Path

import pytest

from data_prep.build.documents import CleanDocument
from data_prep.build.jobs import Cleaned, CleanJob
from data_prep.build.selection import Selection, sample_lines, split_documents
from data_prep.build.spool import write_raw
from data_prep.duplicates import Cut, Findings
from data_prep.reading.documents import Document, ReadOptions
from data_prep.reading.units import Unit
from data_prep.sources import Source
from data_prep.steps import RECIPES

WORDS = ["the", "grey", "harbour", "watched", "an", "old", "lantern", "before", "its", "crossed"]


def corpus_of(
    tmp_path: Path, texts: list[str], min_characters: int = 0, keeps_equal: bool = False
) -> Selection:
    """Return a corpus of documents of one name, whose entries were read from JSON."""
    prefix = tmp_path / str(len(list(tmp_path.iterdir())))
    write_raw(prefix, tuple(Document("same", text.encode(), "text") for text in texts))
    job = CleanJob(
        units=(Unit(Source("texts", tmp_path), 0, None),),
        unpacked=True,
        options=ReadOptions(),
        steps=RECIPES["books"],
        sketches=False,
        prefix=prefix,
    )
    corpus = Selection(keeps_equal)
    corpus.add(job, Cleaned.model_validate_json(job.run().model_dump_json()), min_characters)
    return corpus


def documents_of(tmp_path: Path, texts: list[str]) -> list[CleanDocument]:
    return corpus_of(tmp_path, texts).kept


def prose(size: int, seed: int, paragraph: int = 600) -> str:
    """Return about `size` bytes of random words in paragraphs of about `paragraph` bytes."""
    words = random.Random(seed).choices(WORDS, k=size // 6)
    each = paragraph // 6
    return "\n\n".join(" ".join(words[n : n + each]) for n in range(0, len(words), each))


def share_of(split: dict[str, list[CleanDocument]]) -> float:
    held = sum(document.size for document in split["validation"])
    return held / (held + sum(document.size for document in split["train"]))


def texts_of(documents: list[CleanDocument]) -> list[str]:
    return sorted(document.text() for document in documents)


@pytest.mark.parametrize("fraction", [0.01, 0.2, 0.9])
@pytest.mark.parametrize(
    "sizes",
    [
        [400_000],
        [320_000, 40_000],
        [40_000, 320_000],
        [30_000] * 9,
        [300_000, *[1000] * 100],
        [2000] * 100,
        [2000, 4000, 8000, 16_000, 32_000, 64_000, 128_000, 256_000],
    ],
    ids=lambda sizes: f"{len(sizes)} documents",
)
@pytest.mark.parametrize("seed", [0, 1000])
def test_the_share_held_out_is_close_to_the_wanted_one(
    tmp_path: Path, sizes: list[int], fraction: float, seed: int
) -> None:
    documents = documents_of(tmp_path, [prose(size, seed + n) for n, size in enumerate(sizes)])
    split = split_documents(documents, fraction)
    slack = 0.2 * min(fraction, 1 - fraction)
    assert share_of(split) == pytest.approx(fraction, abs=slack)
    parts = texts_of(split["train"] + split["validation"])
    assert len(parts) <= len(documents) + 1  # no more than one is cut, at the end of a paragraph
    assert sorted("\n".join(parts).split("\n")) == sorted(
        "\n".join(texts_of(documents)).split("\n")
    )


def test_the_split_does_not_depend_on_the_order(tmp_path: Path) -> None:
    texts = [prose(20_000, seed) for seed in range(12)]
    forward = split_documents(documents_of(tmp_path, texts), 0.02)
    backward = split_documents(documents_of(tmp_path, texts[::-1]), 0.02)
    assert {name: texts_of(parts) for name, parts in forward.items()} == {
        name: texts_of(parts) for name, parts in backward.items()
    }


def test_more_documents_move_none_from_validation_to_training(tmp_path: Path) -> None:
    texts = [prose(200, seed) for seed in range(1500)]
    few = split_documents(documents_of(tmp_path, texts[:1000]), 0.1)
    many = split_documents(documents_of(tmp_path, texts), 0.1)
    assert set(texts_of(few["train"])) < set(texts_of(many["train"]))
    assert set(texts_of(few["validation"])) < set(texts_of(many["validation"]))


def test_nothing_is_held_out_where_nothing_is_wanted(tmp_path: Path) -> None:
    documents = documents_of(tmp_path, [prose(1000, seed) for seed in range(3)])
    assert split_documents(documents, 0) == {"train": documents, "validation": []}


def test_a_paragraph_without_end_is_cut_between_words(tmp_path: Path) -> None:
    (document,) = documents_of(tmp_path, [prose(100_000, 0, paragraph=100_000)])
    split = split_documents([document], 0.05)
    assert share_of(split) == pytest.approx(0.05, abs=0.001)
    (head,), (tail,) = (texts_of(parts) for parts in split.values())
    assert f"{head} {tail}" == document.text()


def test_a_single_word_is_not_cut(tmp_path: Path) -> None:
    documents = documents_of(tmp_path, ["é" * 3000])
    assert split_documents(documents, 0.1) == {"train": documents, "validation": []}


def test_the_tokenizer_sees_no_text_that_is_held_out(tmp_path: Path) -> None:
    documents = documents_of(tmp_path, [prose(300_000, 0, paragraph=300_000)])
    split = split_documents(documents, 0.05)
    sample = list(sample_lines(split["train"], 1 << 20, seed=0))
    assert sample == texts_of(split["train"])


def test_equal_texts_of_one_name_are_duplicates(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, [prose(1000, 0), prose(1000, 0)])
    assert len(corpus.kept) == 1
    assert corpus.dropped == {"duplicate": 1}


def test_a_text_that_a_step_cuts_below_the_minimum_is_the_step_s_doing(tmp_path: Path) -> None:
    book = "*** START OF THIS PROJECT GUTENBERG EBOOK X ***\n\nA few words.\n\n"
    book += "*** END OF THIS PROJECT GUTENBERG EBOOK X ***\n\n" + prose(1000, 1)
    corpus = corpus_of(tmp_path, [book, "A few words more."], min_characters=500)
    assert corpus.dropped == {"too short after the step gutenberg": 1, "too short": 1}


def test_a_document_without_its_repeated_passages_is_accounted_for(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, [prose(1000, 0), prose(1000, 1), prose(1000, 2)])
    first, second, third = corpus.kept
    cuts = {1: [Cut(0, second.size, 0)], 2: [Cut(0, third.size - 20, 0)]}
    corpus.apply(Findings({}, cuts), min_characters=100)
    assert corpus.kept == [first]
    assert corpus.dropped == {"too short without repeated passages": 2}
    (count,) = corpus.sources.values()
    assert (count.read, count.kept) == (3, 1)
    assert corpus.passages.passages == 2


def test_a_digest_does_not_depend_on_the_place_of_a_document(tmp_path: Path) -> None:
    texts = [prose(1000, 0), prose(1000, 1)]
    (_, there), (here, _) = corpus_of(tmp_path, texts).kept, corpus_of(tmp_path, texts[::-1]).kept
    assert there.ranges != here.ranges
    assert there.without([(0, 100)]).digest == here.without([(0, 100)]).digest
    assert there.without([(0, 100)]).digest != there.digest


def test_equal_texts_are_held_out_together(tmp_path: Path) -> None:
    texts = [prose(20_000, seed) for seed in (*range(12), 0, 0, 1)]
    for fraction in (0.1, 0.2, 0.5):
        split = split_documents(corpus_of(tmp_path, texts, keeps_equal=True).kept, fraction)
        assert share_of(split) == pytest.approx(fraction, rel=0.2)
        train, held_out = (texts_of(parts) for parts in split.values())
        assert len(train) + len(held_out) >= len(texts)
        assert not set(train) & set(held_out)
