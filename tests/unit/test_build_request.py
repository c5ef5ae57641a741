"""Test what a command line of `data_prep build` asks for."""

from pathlib import Path

import pytest
from tokenizers import ByteLevelBPETokenizer

from data_prep.arguments import make_parser
from data_prep.build.build import BuildRequest
from data_prep.request import build_request
from data_prep.tokenizer import train_sentencepiece
from gpt_dist.errors import ConfigError

TEXT = "The sign ▁ of a space, a b c, An apple. " * 9


def request(*options: object) -> BuildRequest:
    arguments = ["build", "books", "--output", "tokens", *map(str, options)]
    return build_request(make_parser().parse_args(arguments))


def test_options_of_cleaning_reach_the_readers_of_markup() -> None:
    options = ("--no-guess", "--read-suffix", ".PY", "--read-suffix", "rs")
    reading = request(*options).reading
    assert (reading.guess, reading.suffixes) == (False, ("py", "rs"))
    assert request(*options).options.read_suffixes == ("py", "rs")
    assert request().reading.guess


@pytest.mark.parametrize("suffix", ["txt", ".json", "a b", "", "5"])
def test_a_suffix_that_is_read_anyway_is_refused(
    suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        request("--read-suffix", suffix)
    assert "is no suffix, or one that is read anyway" in capsys.readouterr().err


@pytest.mark.parametrize("recipe", ["books", "plain"])
def test_the_space_mark_is_kept_where_the_tokenizer_holds_it(tmp_path: Path, recipe: str) -> None:
    spaces, byte_level = tmp_path / "spaces", tmp_path / "bytes"
    spaces.mkdir()
    byte_level.mkdir()
    (spaces / "tokenizer.model").write_bytes(train_sentencepiece(iter([TEXT]), 280))
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator([TEXT], 300)
    trained.save(str(byte_level / "tokenizer.json"))
    options = ("--recipe", recipe)
    for given in ((), ("--tokenizer", spaces)):
        assert request(*options, *given).steps.space_mark
        with pytest.raises(ConfigError, match="no-space-mark: the tokenizer has no token"):
            request(*options, *given, "--no-space-mark")
    options += ("--tokenizer", str(byte_level))
    assert not request(*options).steps.space_mark
    assert not request(*options, "--no-space-mark").steps.space_mark
    assert request(*options, "--space-mark").steps.space_mark
