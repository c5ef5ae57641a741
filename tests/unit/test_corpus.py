"""Test that the wanted share is held out, whatever the number and sizes of documents."""

import random
from pathlib import Path

import pytest

from data_prep.corpus import sample_lines, split_documents
from data_prep.jobs import CleanDocument, CleanJob, clean_batch
from data_prep.reading.documents import Document

WORDS = ["the", "grey", "harbour", "watched", "an", "old", "lantern", "before", "its", "crossed"]


def documents_of(tmp_path: Path, texts: list[str]) -> list[CleanDocument]:
    items = tuple(Document(str(n), text.encode(), "text") for n, text in enumerate(texts))
    output = tmp_path / f"{len(list(tmp_path.iterdir()))}.txt"
    return clean_batch(CleanJob(items, output, lowercase=True)).documents


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
        [500, 1000, 2000, 4000, 8000, 16_000, 32_000, 64_000],
    ],
    ids=lambda sizes: f"{len(sizes)} documents",
)
@pytest.mark.parametrize("seed", [0, 1000])
def test_the_share_held_out_is_close_to_the_wanted_one(
    tmp_path: Path, sizes: list[int], fraction: float, seed: int
) -> None:
    documents = documents_of(tmp_path, [prose(size, seed + n) for n, size in enumerate(sizes)])
    split = split_documents(documents, fraction)
    slack = 0.34 * min(fraction, 1 - fraction)
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
