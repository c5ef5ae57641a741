"""The tokenizer in pieces against sentencepiece on the whole text."""

from __future__ import annotations

import pytest
import sentencepiece

from gpt_dist.data.tokenizer import SentencePieceTokenizer

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
