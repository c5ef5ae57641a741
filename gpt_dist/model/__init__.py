"""Models: families of decoder-only Transformers on tensor-parallel layers, and their weights."""

from gpt_dist.model.decoder import GPT, IGNORED_LABEL
from gpt_dist.model.families import build_model, family_of
from gpt_dist.model.flops import flops_per_token, peak_flops
from gpt_dist.model.folder import ModelFolder, write_model_folder
from gpt_dist.model.parameters import num_parameters, parameter_table
from gpt_dist.model.probe import agrees, probe_loss, probe_tokens
from gpt_dist.model.released import ReleasedWeights
from gpt_dist.model.weights import (
    GrownVocabulary,
    load_full_tensors,
    load_model,
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
    "load_full_tensors",
    "load_model",
    "num_parameters",
    "parameter_table",
    "peak_flops",
    "probe_loss",
    "probe_tokens",
    "write_model_folder",
]
