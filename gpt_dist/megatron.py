"""The parts of megatron-core that the project uses, imported quietly and at once.

Each import of megatron-core says that its optional CUDA extensions are missing, and has torch's
compiler loaded for functions that are not used here: more than half of the time of a start.
"""

import warnings
from typing import Any
from unittest.mock import patch

import torch


def _uncompiled(function: Any = None, **_: Any) -> Any:
    """Return the function that `torch.compile` decorates, or such a decorator, as it is."""
    return function or _uncompiled


with warnings.catch_warnings(), patch.object(torch, "compile", _uncompiled):
    warnings.simplefilter("ignore")
    from megatron.core import parallel_state as parallel_state
    from megatron.core.model_parallel_config import ModelParallelConfig as ModelParallelConfig
    from megatron.core.tensor_parallel import ColumnParallelLinear as ColumnParallelLinear
    from megatron.core.tensor_parallel import RowParallelLinear as RowParallelLinear
    from megatron.core.tensor_parallel import VocabParallelEmbedding as VocabParallelEmbedding
    from megatron.core.tensor_parallel import (
        copy_to_tensor_model_parallel_region as copy_to_tensor_model_parallel_region,
    )
    from megatron.core.tensor_parallel import (
        reduce_from_tensor_model_parallel_region as reduce_from_tensor_model_parallel_region,
    )
    from megatron.core.tensor_parallel import (
        vocab_parallel_cross_entropy as vocab_parallel_cross_entropy,
    )
