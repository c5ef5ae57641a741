"""Models: families of decoder-only Transformers on tensor-parallel layers, and their weights."""

from gpt_dist.model.decoder import GPT, IGNORED_LABEL
from gpt_dist.model.families import build_model, family_of
from gpt_dist.model.flops import flops_per_token, peak_flops
from gpt_dist.model.folder import ModelFolder, write_model_folder
from gpt_dist.model.parameters import num_parameters, parameter_table, split_dimension
from gpt_dist.model.probe import agrees, probe_loss, probe_tokens
from gpt_dist.model.released import ReleasedWeights
from gpt_dist.model.weights import (
    GrownVocabulary,
    from_hugging_face,
    load_full_tensors,
    load_model,
    to_hugging_face,
)

__all__ = [
    "GPT",
    "IGNORED_LABEL",
    "GrownVocabulary",
    "ModelFolder",
    "ReleasedWeights",
    "agrees",
    "build_model",
    "family_of",
    "flops_per_token",
    "from_hugging_face",
    "load_full_tensors",
    "load_model",
    "num_parameters",
    "parameter_table",
    "peak_flops",
    "probe_loss",
    "probe_tokens",
    "split_dimension",
    "to_hugging_face",
    "write_model_folder",
]
