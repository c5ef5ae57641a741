"""Settle what a command line of `build` asks for, and refuse options that contradict each other."""

import argparse

from data_prep.build.build import BuildRequest
from data_prep.defaults import PASSAGE_WORDS, THRESHOLD
from data_prep.manifest import BuildOptions
from data_prep.reading.documents import ReadOptions
from data_prep.steps import RECIPES, Steps
from data_prep.tokenizer import knows_only_lower_case
from gpt_dist.data.tokenizers.folder import FolderTokenizer, open_tokenizer
from gpt_dist.data.tokenizers.tokenizer import SPACE
from gpt_dist.errors import ConfigError

_KEPT: dict[str, dict[str, float | None]] = {
    "books": {"min_characters": 500, "near_duplicates": THRESHOLD},
    "plain": {"min_characters": 0, "near_duplicates": None},
}
"""The options that decide which documents are kept, and their defaults, by recipe."""

_TRAINING = {"vocab_size": 40_000, "tokenizer_sample_mb": 20, "seed": 0}
"""The options of training a tokenizer, and their defaults."""


def build_request(options: argparse.Namespace) -> BuildRequest:
    """Return the build that the command line asks for.

    Raises:
        ConfigError: An option of training a tokenizer is given beside --tokenizer, or the
            tokenizer contradicts an option of cleaning.
    """
    values = vars(options)
    steps = _steps(options)
    tokenizer = None
    for name, value in _KEPT[options.recipe].items():
        values[name] = value if values[name] is None else values[name]
    _choose_duplicates(options)
    if options.tokenizer is None:
        for name, value in _TRAINING.items():
            values[name] = value if values[name] is None else values[name]
    else:
        for name in _TRAINING:
            if values[name] is not None:
                raise ConfigError(
                    f"--{name.replace('_', '-')}: {values[name]} is for training a tokenizer, but "
                    f"--tokenizer {options.tokenizer} gives one; leave one of them out"
                )
        tokenizer = open_tokenizer(options.tokenizer)
        values["vocab_size"] = tokenizer.full_vocab_size
        steps = _follow(tokenizer, options.lowercase, steps)
    steps = _keep_space_mark(tokenizer, options.space_mark, steps)
    values["steps"], values["lowercase"] = steps.model_dump(), steps.lowercase
    return BuildRequest(
        inputs=tuple(options.inputs),
        output=options.output,
        options=BuildOptions.model_validate(options),
        reading=ReadOptions(
            text_field=options.text_field,
            separator=options.separator,
            encoding=options.encoding,
            suffixes=tuple(options.read_suffixes),
            guess=steps.guess,
        ),
        steps=steps,
        tokenizer=options.tokenizer,
    )


def _choose_duplicates(options: argparse.Namespace) -> None:
    """Settle the options of duplicates, of which one contains another.

    Raises:
        ConfigError: Passages are to be cut, but no near-duplicates to be found.
    """
    if options.keep_duplicates:
        options.near_duplicates = None
    if options.passage_words and not options.near_duplicates:
        raise ConfigError(
            f"--passage-words: {options.passage_words} cuts what --near-duplicates finds, which "
            f"is off; give --near-duplicates {THRESHOLD} too, or leave --passage-words out"
        )
    if options.passage_words is None:
        options.passage_words = PASSAGE_WORDS if options.near_duplicates else 0


def _follow(tokenizer: FolderTokenizer, lowercase: bool | None, steps: Steps) -> Steps:
    """Return the steps with the case that a given tokenizer was made for.

    Raises:
        ConfigError: The user asks for the other case.
    """
    is_lower = knows_only_lower_case(tokenizer)
    if is_lower is None:
        return steps
    if lowercase is not None and lowercase != is_lower:
        made_for, flag = ("lower", "no-lowercase") if is_lower else ("upper and lower", "lowercase")
        raise ConfigError(
            f"--{flag}: the given tokenizer was made for text in {made_for} case; leave the option "
            "out, or give another --tokenizer"
        )
    return steps.model_copy(update={"lowercase": is_lower})


def _keep_space_mark(tokenizer: FolderTokenizer | None, wanted: bool | None, steps: Steps) -> Steps:
    """Return the steps that keep sentencepiece's sign for a space if a tokenizer can hold it.

    Raises:
        ConfigError: The user asks for that of a tokenizer that cannot.
    """
    if tokenizer and SPACE in tokenizer.decode(tokenizer.encode(SPACE)):
        return steps.model_copy(update={"space_mark": bool(wanted)})
    if wanted is False:
        raise ConfigError(
            f"--no-space-mark: the tokenizer has no token for {SPACE} (U+2581) but that of a "
            "space; leave the option out, or give a --tokenizer of bytes, such as GPT-2's"
        )
    return steps


def _steps(options: argparse.Namespace) -> Steps:
    """Return the recipe with the steps that the command line changes."""
    given = {name: getattr(options, name) for name in Steps.model_fields}
    changed = {name: value for name, value in given.items() if value is not None}
    return Steps.model_validate(RECIPES[options.recipe].model_dump() | changed)
