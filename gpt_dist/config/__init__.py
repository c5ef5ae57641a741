"""The typed configuration of a run: its sections, how a file is read, how it is completed."""

from gpt_dist.config.sections import (
    FINE_TUNING_DEFAULTS,
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
    ScheduleConfig,
    Section,
    SplitConfig,
    TaskConfig,
)

__all__ = [
    "FINE_TUNING_DEFAULTS",
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
    "ScheduleConfig",
    "Section",
    "SplitConfig",
    "TaskConfig",
]
