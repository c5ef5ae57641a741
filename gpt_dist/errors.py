"""Errors that a user can cause; each message names the culprit and the remedy."""

from pydantic import ValidationError

USER_ERROR = 2
"""Exit status of a run that was refused."""


class GptDistError(Exception):
    """Base of all errors that are the input's fault, not the program's."""

    told = False
    """True once the other processes know of it, and leave it to this one to report it."""


class ConfigError(GptDistError):
    """A configuration key is unknown, has an illegal value, or contradicts another key."""


class DataError(GptDistError):
    """A book, token folder or shard is missing, damaged or unsuitable."""


class LaunchError(GptDistError):
    """The launcher's environment, or the processes it started, cannot train together."""


class TrainingError(GptDistError):
    """Training cannot go on: its numbers are no longer finite."""


class RolledBack(GptDistError):  # noqa: N818 -- it is not an error
    """Training goes back to its last checkpoint, and leaves out a global batch."""


class Interrupted(GptDistError):  # noqa: N818 -- it is not an error
    """The run was preempted, and saved; it can be resumed."""


class CheckpointError(GptDistError):
    """A checkpoint is damaged, missing, belongs to another run, or could not be written."""


class ModelError(GptDistError):
    """A model folder or released weights are damaged, missing or of an unsuitable kind."""


def first_problem(error: ValueError) -> str:
    """Return the first fault of a record that does not validate, as `key: reason`."""
    if not isinstance(error, ValidationError):
        return f"the file: {error}"
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"])) or "the file"
    return f"{where}: {first['msg']}"
