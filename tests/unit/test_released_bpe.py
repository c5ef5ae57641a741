"""Test the tokenizers of the released GPT-1 and of GPT-2 against those of transformers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpt_dist.data.tokenizers.byte_pair import BytePairTokenizer, read_gpt2, read_openai_gpt
from gpt_dist.data.tokenizers.folder import open_tokenizer, tokenizer_files
from gpt_dist.errors import DataError
from tests.models import count_refused, sample_texts

transformers = pytest.importorskip("transformers")

DATA = Path(__file__).parents[3] / "shared/data"
RELEASED = DATA / "openai-gpt"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is absent")

TEXTS = [
    "",
    "Hello, World! It's 3.14 o'clock.",
    "  spaces \n\n lines\tand tabs\r\n",
    "ÀÉÎ Straße ﬁ ½ İ",
    "日本語 🎉\u200d \ufffd \x00\x07 nul",
    "<unk> <|endoftext|> </w> don't--stop...",
    "a" * 300,
]


def books() -> Iterator[str]:
    for file in sorted((DATA / "books").glob("*.txt"))[:5]:
        yield file.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def released() -> BytePairTokenizer:
    return open_tokenizer(RELEASED)


@needs_data
def test_ids_are_those_of_transformers(released, tmp_path):
    for ours, theirs in (
        ("encoder_bpe_40000.json", "vocab.json"),
        ("vocab_40000.bpe", "merges.txt"),
    ):
        (tmp_path / theirs).write_bytes((RELEASED / ours).read_bytes())
    theirs = transformers.OpenAIGPTTokenizer.from_pretrained(tmp_path)
    from_hugging_face_names = open_tokenizer(tmp_path)
    for text in [*TEXTS, *books()]:
        expected = theirs(text, split_special_tokens=True)["input_ids"]
        assert released.encode(text).tolist() == expected, text[:40]
        if len(text) < 1000:
            assert from_hugging_face_names.encode(text).tolist() == expected
            assert released.decode(expected) == theirs.decode(expected, skip_special_tokens=True)


@needs_data
def test_a_model_folder_keeps_the_tokenizer(released, tmp_path):
    files = tokenizer_files(RELEASED)
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "config.json").write_text('{"model_type": "openai-gpt"}')
    assert tokenizer_files(tmp_path) == files
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        ids = released.encode(text).tolist()
        assert open_tokenizer(tmp_path).encode(text).tolist() == ids
        assert theirs(text)["input_ids"] == ids


@needs_data
def test_reserved_tokens_follow_the_vocabulary(released):
    assert released.vocab_size == 40478
    assert released.full_vocab_size == 40482
    assert {released.start, released.delimiter, released.extract, released.end_of_text} == {
        40478 + number for number in range(4)
    }
    ids = released.encode("the cat sat.").tolist()
    assert released.decode([released.start, *ids, released.extract]) == "the cat sat ."


def test_gpt2_ids_are_those_of_transformers(tmp_path):
    from tokenizers import ByteLevelBPETokenizer

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(sample_texts(), 600, special_tokens=["<|endoftext|>"])
    trained.save_model(str(tmp_path))
    theirs = transformers.GPT2Tokenizer.from_pretrained(tmp_path)
    ours = open_tokenizer(tmp_path)
    for text in [*TEXTS, *sample_texts()]:
        ids = ours.encode(text).tolist()
        assert ids == theirs(text, split_special_tokens=True)["input_ids"], text[:40]
        assert ours.decode(ids) == text
    assert ours.end_of_text == theirs.eos_token_id


def write_special_tokens(folder: Path, **model: object) -> None:
    """Write a tokenizer whose special token `<s>` is listed as ordinary and made by a merge."""
    vocab = {"<s>": 0, "<": 1, "s>": 2, "s": 3, ">": 4, "a": 5}
    merges = [["s", ">"], ["<", "s>"]]
    written = {"type": "BPE", "vocab": vocab, "merges": merges, **model}
    flags = dict.fromkeys(["single_word", "lstrip", "rstrip", "normalized", "special"], False)
    added = [{"id": 0, "content": "<s>", **flags}]
    text = json.dumps({"version": "1.0", "added_tokens": added, "model": written})
    (folder / "tokenizer.json").write_text(text)


def test_no_text_gives_a_special_token_that_is_listed_as_ordinary(tmp_path):
    write_special_tokens(tmp_path)
    tokenizer = open_tokenizer(tmp_path)
    assert tokenizer.encode("a<s>").tolist() == [5, 1, 2]
    for name, content in tokenizer.files().items():
        (tmp_path / name).write_bytes(content)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs("a<s>")["input_ids"] == [5, 1, 2]


def test_a_tokenizer_whose_text_gives_a_special_token_is_refused(tmp_path):
    write_special_tokens(tmp_path, ignore_merges=True)
    with pytest.raises(DataError, match="the text '<s>' gives a special token"):
        open_tokenizer(tmp_path)


def test_no_text_is_cut_short(tmp_path):
    from tokenizers import ByteLevelBPETokenizer

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(sample_texts(), 600)
    text = next(sample_texts())
    expected = trained.encode(text).ids
    trained.enable_truncation(10)
    trained.enable_padding(length=20)
    trained.save(str(tmp_path / "tokenizer.json"))
    assert open_tokenizer(tmp_path).encode(text).tolist() == expected
    assert open_tokenizer(tmp_path).encode("a").size == 1


@pytest.mark.parametrize("vocabulary", ["", "[]", '{"a": "x"}', '{"a": -1}', "\x80\x04pickle"])
@pytest.mark.parametrize("read", [read_openai_gpt, read_gpt2])
def test_damaged_files_are_refused(tmp_path, vocabulary, read):
    files = tmp_path / "vocab.json", tmp_path / "merges.txt"
    files[0].write_text(vocabulary)
    files[1].write_text("#version: 0.2\na b\n")
    with pytest.raises(DataError, match=r"vocab\.json.*copy the tokenizer again"):
        read(*files)


def test_merges_beyond_the_vocabulary_are_refused(tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "b": 1}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    with pytest.raises(DataError, match="copy the tokenizer again"):
        open_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "model",
    [
        {},
        {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 0},
        {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": [["a", "b"]]},
        {"type": "BPE", "vocab": {"a": 0, "b": 4_000_000_000}, "merges": []},
        {"type": "BPE", "vocab": {"a": 0, "b": 0}, "merges": []},
        {
            "type": "BPE",
            "vocab": {"a": 0, "b": 1, "ab": 2},
            "merges": [["a", "b"]],
            "continuing_subword_prefix": "#####",
        },
    ],
)
def test_an_unsuitable_tokenizer_json_is_refused(tmp_path, model):
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": model}))
    with pytest.raises(DataError, match="copy the tokenizer again"):
        open_tokenizer(tmp_path)


@pytest.mark.parametrize("damaged", ["tokenizer.json", "vocab.json", "merges.txt"])
def test_a_damaged_file_is_refused_or_opens(tmp_path, damaged):
    from tokenizers import ByteLevelBPETokenizer

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(sample_texts(), 400)
    if damaged == "tokenizer.json":
        trained.save(str(tmp_path / damaged))
    else:
        trained.save_model(str(tmp_path))

    def use_all() -> None:
        tokenizer = open_tokenizer(tmp_path)
        tokenizer.decode(tokenizer.encode("the cat sat."))
        tokenizer_files(tmp_path)

    assert 200 < count_refused(tmp_path / damaged, use_all, DataError, 400) < 400


def test_a_folder_without_tokenizer_is_refused(tmp_path):
    with pytest.raises(DataError, match="has no tokenizer"):
        open_tokenizer(tmp_path)
