"""The decoder-only Transformer on tensor-parallel layers, and its weights in other layouts."""

from gpt_dist.model.flops import flops_per_token, peak_flops
from gpt_dist.model.folder import ModelFolder, load_model, write_model_folder
from gpt_dist.model.generate import Sampling, generate
from gpt_dist.model.head import HeadKind, TaskHead, head_shape, task_losses, task_scores
from gpt_dist.model.perplexity import SlidingWindows, total_loss
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
    "HeadKind",
    "ModelFolder",
    "ReleasedWeights",
    "Sampling",
    "SlidingWindows",
    "TaskHead",
    "agrees",
    "flops_per_token",
    "from_hugging_face",
    "full_shapes",
    "generate",
    "head_shape",
    "load_full_tensors",
    "load_model",
    "num_parameters",
    "peak_flops",
    "probe_loss",
    "probe_tokens",
    "task_losses",
    "task_scores",
    "to_hugging_face",
    "total_loss",
    "write_model_folder",
]
