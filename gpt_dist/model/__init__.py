"""The decoder-only Transformer on tensor-parallel layers, and its weights in other layouts."""

from gpt_dist.model.flops import flops_per_token, peak_flops
from gpt_dist.model.folder import ModelFolder, load_model, write_model_folder
from gpt_dist.model.generate import Sampling, generate
from gpt_dist.model.perplexity import SlidingWindows, total_loss
from gpt_dist.model.probe import agrees, probe_loss, probe_tokens
from gpt_dist.model.released import ReleasedWeights
from gpt_dist.model.transformer import GPT
from gpt_dist.model.weights import (
    GrownVocabulary,
    from_hugging_face,
    load_full_tensors,
    to_hugging_face,
)

__all__ = [
    "GPT",
    "GrownVocabulary",
    "ModelFolder",
    "ReleasedWeights",
    "Sampling",
    "SlidingWindows",
    "agrees",
    "flops_per_token",
    "from_hugging_face",
    "generate",
    "load_full_tensors",
    "load_model",
    "peak_flops",
    "probe_loss",
    "probe_tokens",
    "to_hugging_face",
    "total_loss",
    "write_model_folder",
]
