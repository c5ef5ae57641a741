"""Test encoding in pieces against sentencepiece on the whole text."""

from __future__ import annotations

import pytest
import sentencepiece

from gpt_dist.data.tokenizers.folder import tokenizer_files
from gpt_dist.data.tokenizers.tokenizer import SentencePieceTokenizer
from gpt_dist.errors import DataError
from tests.models import count_refused, sample_tokenizer

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
