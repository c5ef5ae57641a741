"""GPT-1 as a distributed training system: tokens, model, training, checkpoints."""

__version__ = "0.1.0"
