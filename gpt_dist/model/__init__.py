"""The decoder-only Transformer on tensor-parallel layers, and its weights in other layouts."""

from gpt_dist.model.flops import flops_per_token, peak_flops
from gpt_dist.model.transformer import GPT
from gpt_dist.model.weights import from_hugging_face, load_full_tensors

__all__ = ["GPT", "flops_per_token", "from_hugging_face", "load_full_tensors", "peak_flops"]
