"""The errors that a user can cause: each message names the culprit and says the remedy."""


class GptDistError(Exception):
    """Base of all errors that are the input's fault, not the program's."""


class ConfigError(GptDistError):
    """A configuration key is unknown, has an illegal value, or contradicts another key."""


class DataError(GptDistError):
    """A book, token folder or shard is missing, damaged or unsuitable."""


class LaunchError(GptDistError):
    """The launcher's environment, or the processes it started, cannot train together."""


class TrainingError(GptDistError):
    """Training cannot go on: its numbers are no longer finite."""
