"""The typed configuration of a run: its sections, how a file is read, how it is completed."""

from gpt_dist.config.sections import IGNORED_LABEL as IGNORED_LABEL
from gpt_dist.config.sections import NO_SOURCE as NO_SOURCE
from gpt_dist.config.sections import AnyConfig as AnyConfig
from gpt_dist.config.sections import CheckpointConfig as CheckpointConfig
from gpt_dist.config.sections import Column as Column
from gpt_dist.config.sections import Config as Config
from gpt_dist.config.sections import DataConfig as DataConfig
from gpt_dist.config.sections import Form as Form
from gpt_dist.config.sections import ModelConfig as ModelConfig
from gpt_dist.config.sections import OptimizerConfig as OptimizerConfig
from gpt_dist.config.sections import ResolvedConfig as ResolvedConfig
from gpt_dist.config.sections import ResolvedModelConfig as ResolvedModelConfig
from gpt_dist.config.sections import ResolvedScheduleConfig as ResolvedScheduleConfig
from gpt_dist.config.sections import SplitConfig as SplitConfig
from gpt_dist.config.sections import TaskConfig as TaskConfig
