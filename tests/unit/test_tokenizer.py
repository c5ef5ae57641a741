"""Test encoding in pieces against sentencepiece on the whole text."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import ByteLevelBPETokenizer

from data_prep.tokenizer import knows_only_lower_case, train_sentencepiece
from gpt_dist.data.tokenizers.folder import open_tokenizer, tokenizer_files
from gpt_dist.data.tokenizers.tokenizer import (
    SPECIAL_TOKENS,
    SentencePieceTokenizer,
)
from gpt_dist.errors import DataError
from tests.models import count_refused, sample_texts, sample_tokenizer

LONG = "the miner said nothing and looked at the fire " * 60


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\n",
        "a\nb",
        LONG,
        LONG + "\n",
        "a" * 1100 + "\n",
        "a" * 1100 + " ",
        LONG + "b\n\nc",
    ],
)
def test_ids_are_sentencepieces_own(token_folder, text):
    model = token_folder / "tokenizer.model"
    whole = sentencepiece.SentencePieceProcessor(model_file=str(model))
    expected = whole.encode(text.replace("\n", "\n "))
    assert SentencePieceTokenizer(model).encode(text).tolist() == expected


def test_a_damaged_model_is_refused_or_opens_whole(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(sample_tokenizer())

    def use_all() -> None:
        tokenizer = SentencePieceTokenizer(tmp_path / "tokenizer.model")
        tokenizer.decode(range(tokenizer.vocab_size))
        tokenizer_files(tmp_path)

    assert 300 < count_refused(tmp_path / "tokenizer.model", use_all, DataError, 600) < 600


def test_a_model_whose_text_gives_a_special_token_is_refused(tmp_path):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the miner said nothing"] * 9),
        model_writer=model,
        vocab_size=290,
        model_type="bpe",
        byte_fallback=True,
        control_symbols=list(SPECIAL_TOKENS),
        user_defined_symbols=["<pad>"],
        minloglevel=2,
    )
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    with pytest.raises(DataError, match="<pad> is a user-defined symbol"):
        SentencePieceTokenizer(tmp_path / "tokenizer.model")


def write_sentencepiece(text: str, vocab_size: int, folder: Path) -> None:
    (folder / "tokenizer.model").write_bytes(train_sentencepiece(iter([text]), vocab_size))


def write_byte_level(text: str, lowercase: bool, folder: Path) -> None:
    trained = ByteLevelBPETokenizer(lowercase=lowercase)
    trained.train_from_iterator([text], 400)
    trained.save(str(folder / "tokenizer.json"))


def test_a_tokenizer_tells_whether_it_is_cased(tmp_path):
    text = next(sample_texts()).replace("\n", " ")[:30_000]
    for number, (write, expected) in enumerate(
        [
            (partial(write_sentencepiece, text, 400), False),
            (partial(write_sentencepiece, text.lower(), 400), True),
            (partial(write_sentencepiece, "中文 天下", 270), None),
            (partial(write_byte_level, text, False), False),
            (partial(write_byte_level, text.lower(), False), True),
            (partial(write_byte_level, text, True), True),
            (partial(write_byte_level, "1 2 3", False), None),
        ]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        write(folder)
        assert knows_only_lower_case(open_tokenizer(folder)) is expected, number
