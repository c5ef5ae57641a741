"""Train GPTs over many processes: tokens, model families, training, checkpoints."""

__version__ = "0.1.0"
