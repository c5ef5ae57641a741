"""Steps of cleaning."""

from gpt_dist.files.records import Record


class Steps(Record):
    """Choices of cleaning."""

    lowercase: bool = True
    """Lower-case the text."""


RECIPES = {"books": Steps(), "plain": Steps(lowercase=False)}
