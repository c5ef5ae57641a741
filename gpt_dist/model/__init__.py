"""The decoder-only Transformer on tensor-parallel layers, and its weights in other layouts."""

from gpt_dist.model.flops import flops_per_token, peak_flops
from gpt_dist.model.folder import ModelFolder, load_model, write_model_folder
from gpt_dist.model.probe import agrees, probe_loss, probe_tokens
from gpt_dist.model.released import ReleasedWeights
from gpt_dist.model.transformer import GPT, IGNORED_LABEL
from gpt_dist.model.weights import (
    GrownVocabulary,
    from_hugging_face,
    full_shapes,
    load_full_tensors,
    num_parameters,
    to_hugging_face,
)

__all__ = [
    "GPT",
    "IGNORED_LABEL",
    "GrownVocabulary",
    "ModelFolder",
    "ReleasedWeights",
    "agrees",
    "flops_per_token",
    "from_hugging_face",
    "full_shapes",
    "load_full_tensors",
    "load_model",
    "num_parameters",
    "peak_flops",
    "probe_loss",
    "probe_tokens",
    "to_hugging_face",
    "write_model_folder",
]
