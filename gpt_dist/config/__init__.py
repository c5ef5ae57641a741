"""The typed configuration of a run: its sections, how a file is read, how it is completed."""

from gpt_dist.config.sections import (
    NO_SOURCE,
    AnyConfig,
    CheckpointConfig,
    Column,
    Config,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    ResolvedConfig,
    ResolvedModelConfig,
    ResolvedScheduleConfig,
    SplitConfig,
    TaskConfig,
)

__all__ = [
    "NO_SOURCE",
    "AnyConfig",
    "CheckpointConfig",
    "Column",
    "Config",
    "ModelConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "ResolvedConfig",
    "ResolvedModelConfig",
    "ResolvedScheduleConfig",
    "SplitConfig",
    "TaskConfig",
]
