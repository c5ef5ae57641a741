"""One run, of pre-training or of fine-tuning: engine, loop, checkpoints and reports together."""

import os
from contextlib import nullcontext

import torch

from gpt_dist.checkpoint.folder import warner
from gpt_dist.checkpoint.resume import find_checkpoint
from gpt_dist.checkpoint.save import Saver
from gpt_dist.config import ResolvedConfig
from gpt_dist.topology import Topology, together
from gpt_dist.train.engine import Engine
from gpt_dist.train.interruption import Interruption
from gpt_dist.train.loop import Plan, Trainer
from gpt_dist.train.metrics import Reporter
from gpt_dist.train.start import start_engine


def run(
    config: ResolvedConfig, plan: Plan, topology: Topology, interruption: Interruption
) -> tuple[Engine, list[int]]:
    """Train as a resolved configuration says, from a checkpoint if training.resume leads to one.

    Returns the engine, and, on the reporting process, the validated steps, best first.
    """
    if config.training.deterministic:
        # cuBLAS reads it when it starts; without it, torch refuses its matrix products.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(config.training.deterministic)
    checkpoint = find_checkpoint(config, topology, plan.data.digest, warner(topology))
    done = checkpoint.manifest.step if checkpoint else 0
    engine = start_engine(config, topology, plan.objective, plan.source, checkpoint)
    reporting = together(lambda: Reporter(config, done) if topology.is_main else None)
    with reporting or nullcontext() as reporter:
        if reporter:
            reporter.say(_describe(config, topology, engine.num_parameters))
            if checkpoint:
                reporter.say(f"resumed from {checkpoint.path}")
            elif plan.source:
                reporter.say(f"starting from the weights of {config.model.source}")
        saver = Saver(engine.state(), config, topology, plan.data)
        Trainer(engine, plan, config, topology, saver, interruption, reporter).run(done)
        saver.close()
        if reporter:
            reporter.summary()
    return engine, reporter.best_first if reporter else []


def _describe(config: ResolvedConfig, topology: Topology, parameters: int) -> str:
    training, warmup_steps = config.training, config.schedule.warmup_steps
    batch = "examples" if config.task else f"x {config.model.sequence_length} tokens"
    text = (
        f"{parameters:,} parameters a process, {training.precision}, {topology.device.type}; "
        f"data parallel {topology.data_parallel_size} x tensor parallel "
        f"{topology.tensor_parallel_size}, ZeRO {config.parallel.zero_stage}; "
        f"global batch {training.global_batch_size} {batch}, {training.max_steps} steps"
    )
    if warmup_steps >= training.max_steps:
        text += (
            f"\nWARNING: schedule.warmup_steps {warmup_steps}: all {training.max_steps} steps are "
            "warm-up, below optimizer.learning_rate"
        )
    return text
