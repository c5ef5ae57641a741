"""Test that documents are encoded at speed to the ids of `Tokenizer.encode`, for any text."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from tokenizers import ByteLevelBPETokenizer
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.trainers import BpeTrainer

from data_prep import encoder
from data_prep.encoder import Encoder, open_encoder
from gpt_dist.data.tokenizers.folder import FolderTokenizer, open_tokenizer
from gpt_dist.data.tokenizers.tokenizer import SPECIAL_TOKENS, SentencePieceTokenizer
from gpt_dist.errors import DataError
from tests.models import sample_texts, sample_tokenizer

SPECIAL = [*SPECIAL_TOKENS, "<s>", "<unk>"]


def write_sentencepiece(folder: Path) -> None:
    (folder / "tokenizer.model").write_bytes(sample_tokenizer())


def write_byte_level(folder: Path) -> None:
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(sample_texts(), 600, special_tokens=SPECIAL)
    trained.save(str(folder / "tokenizer.json"))


def write_bert_words(folder: Path) -> None:
    """Write a tokenizer of the kind of GPT-1's, which gigatoken does not know."""
    backend = Backend(BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    backend.normalizer, backend.pre_tokenizer = BertNormalizer(), BertPreTokenizer()
    trainer = BpeTrainer(vocab_size=600, special_tokens=SPECIAL, end_of_word_suffix="</w>")
    backend.train_from_iterator(sample_texts(), trainer)
    backend.save(str(folder / "tokenizer.json"))


WRITERS = {
    "sentencepiece": write_sentencepiece,
    "byte-level": write_byte_level,
    "bert": write_bert_words,
}


@pytest.fixture(scope="module", params=WRITERS)
def folder(request, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    WRITERS[request.param](path)
    return path


@pytest.fixture(params=["gigatoken", "cache of words"])
def fast(request, folder, monkeypatch) -> Encoder:
    """Return an encoder that cuts, forgets and checks often."""
    monkeypatch.setattr(encoder, "_PIECE_CHARACTERS", 40)
    monkeypatch.setattr(encoder, "_CACHED_WORDS", 50)
    monkeypatch.setattr(encoder, "_REMEMBERED_CHARACTERS", 50_000)
    monkeypatch.setattr(encoder, "_CHECK_EVERY", 10_000)
    if request.param == "cache of words":
        monkeypatch.setattr(encoder, "gigatoken", None)
    opened = Encoder(open_tokenizer(folder))
    if request.param not in opened.method:
        pytest.skip("gigatoken is not installed, or does not know this kind")
    return opened


def random_texts(tokenizer: FolderTokenizer, count: int) -> Iterator[str]:
    """Yield texts of white space, of odd characters, of tokens and of parts of tokens."""
    draws = random.Random(0)
    tokens = [tokenizer.decode([index]) or "a" for index in range(tokenizer.vocab_size)]
    ranges = [(0x20, 0x7F), (0, 0x300), (0x300, 0xD800), (0xE000, 0x110000)]
    alphabets = [" \n\t\r\u00a0a.\u3000▁\0'", "aab_'-.5 \n", "é漢🎉ﬁ\u0301\u200d a"]
    glue = ["", "", " ", "\n", "  ", *SPECIAL, "</s>"]
    for _ in range(count):
        length = draws.randrange(50)
        some = draws.choices(tokens, k=length)
        yield "".join(chr(draws.randrange(*draws.choice(ranges))) for _ in range(length))
        yield "".join(draws.choices(draws.choice(alphabets), k=length))
        yield draws.choice(["", " "]).join(some)
        yield "".join(token[: draws.randint(1, 4)] + draws.choice(glue) for token in some)


def test_ids_are_the_tokenizers_own_for_any_text(fast):
    program = "\n\ndef f(x):\n    if x:\n\n        return  x\n\n\n"
    book = next(sample_texts())[:50_000]
    for text in [*random_texts(fast.tokenizer, 500), book, program, ""]:
        ids = fast.encode(text)
        assert ids.dtype == np.int32
        assert ids.tolist() == fast.tokenizer.encode(text).tolist(), text[:200]


def test_a_special_tokens_text_never_becomes_its_id(folder, fast):
    tokenizer = open_tokenizer(folder)
    if isinstance(tokenizer, SentencePieceTokenizer):
        special = set(map(tokenizer.processor.piece_to_id, SPECIAL))
    else:
        unknown = tokenizer.backend.model.unk_token  # also given for a sign that is in no token
        special = {tokenizer.backend.token_to_id(token) for token in SPECIAL if token != unknown}
    for text in [*SPECIAL, "a<s>b", "the end<|endoftext|>\n<|endoftext|> the", " <|start|> <s> "]:
        for encode in (tokenizer.encode, fast.encode):
            ids = encode(text)
            assert len(ids) > 2
            assert special.isdisjoint(ids.tolist()), text


def test_gigatoken_encodes_in_the_calling_thread(folder):
    opened = Encoder(open_tokenizer(folder))
    threads = psutil.Process().num_threads()
    opened.encode("the miner said nothing. " * 100_000)
    assert psutil.Process().num_threads() == threads


def test_the_cache_of_words_is_bounded(folder, monkeypatch):
    monkeypatch.setattr(encoder, "gigatoken", None)
    monkeypatch.setattr(encoder, "_CACHED_WORDS", 1000)
    opened = Encoder(open_tokenizer(folder))
    tracemalloc.start()
    for first in range(0, 20_000, 1000):
        opened.encode(" ".join(f"w{'abcdefghij'[n % 10]}{n}" for n in range(first, first + 1000)))
    opened.encode("x" * 100_000)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 1_000_000


def stub_gigatoken(wrong_for: str) -> SimpleNamespace:
    """Return a library that gives wrong ids for texts with a word."""

    def from_json(text: str) -> SimpleNamespace:
        right = Backend.from_str(text)

        def encode(text: str) -> np.ndarray:
            ids = right.encode(text).ids
            return np.array(ids[:-1] if wrong_for in text else ids, dtype=np.uint32)

        return SimpleNamespace(backend=SimpleNamespace(encode=encode))

    return SimpleNamespace(Tokenizer=SimpleNamespace(from_json=from_json))


@pytest.fixture
def gigatoken_wrong_for(monkeypatch, tmp_path) -> Callable[[str], Encoder]:
    pytest.importorskip("gigatoken")
    write_sentencepiece(tmp_path)

    def open_with(word: str) -> Encoder:
        monkeypatch.setattr(encoder, "gigatoken", stub_gigatoken(word))
        return Encoder(open_tokenizer(tmp_path))

    return open_with


def test_a_wrong_gigatoken_is_refused_with_the_text(gigatoken_wrong_for):
    opened = gigatoken_wrong_for("zyxw")
    assert "gigatoken" in opened.method
    with pytest.raises(DataError, match=r"'azyxw'.*pip uninstall gigatoken"):
        opened.encode("the miner saw azyxw here")


def test_every_half_million_characters_are_checked(gigatoken_wrong_for):
    opened = gigatoken_wrong_for("zyxw")
    opened.encode("the miner")
    opened.encode("zyxw " * 100)  # too little text since the last check
    with pytest.raises(DataError, match="zyxw"):
        opened.encode("zyxw " * 110_000)


def test_a_gigatoken_that_fails_on_hard_texts_is_not_used(gigatoken_wrong_for):
    opened = gigatoken_wrong_for("\u00a0")
    assert opened.method.startswith("sentencepiece")
    assert opened.encode("a\u00a0b").tolist() == opened.tokenizer.encode("a\u00a0b").tolist()


def test_an_encoder_stays_open_until_its_files_change(tmp_path):
    write_sentencepiece(tmp_path)
    first = open_encoder(tmp_path)
    assert open_encoder(tmp_path) is first
    (tmp_path / "tokenizer.model").unlink()
    write_byte_level(tmp_path)
    assert open_encoder(tmp_path).tokenizer.vocab_size == 600
