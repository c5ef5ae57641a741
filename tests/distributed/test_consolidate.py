"""A consolidated checkpoint is the live model, here and in transformers, from every layout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from gpt_dist.data.batches import TokenBatch
from gpt_dist.data.tokenizers.tokenizer import SentencePieceTokenizer
from gpt_dist.rendezvous import Launch
from tests.distributed.test_layouts import SMALL
from tests.models import FAMILIES
from tests.runs import start, train

transformers = pytest.importorskip("transformers")

TOKENS = torch.arange(4 * 32).view(4, 32) % 500


def train_and_save(
    launch: Launch, device: torch.device, overrides: dict[str, Any], directory: Path
) -> torch.Tensor:
    """Two steps and a checkpoint; the logits of the live model, without its padding."""
    import deepspeed

    run = start(launch, device, overrides, directory)
    engine, topology = run.engine, run.topology
    batch = TokenBatch(TOKENS[:1], TOKENS[1:2])
    for _ in range(2):
        engine.train_batch([batch] * (8 // topology.data_parallel_size), 1e-2)
    run.saver.save(2)
    run.saver.wait()
    model = engine._engine.module.model.eval()
    with torch.no_grad():
        hidden = model(TOKENS)
        with deepspeed.zero.GatheredParameters([model.token_embedding.weight]):
            logits = model.logits(hidden)
    parts = [torch.empty_like(logits) for _ in range(topology.tensor_parallel_size)]
    dist.all_gather(parts, logits.contiguous(), group=topology.tensor_parallel_group)
    return torch.cat(parts, dim=-1)[..., :500]


@pytest.mark.parametrize("tensor_parallel_size", [1, 2])
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_gives_the_live_model_s_logits(
    process_group, token_folder, tmp_path, family, zero_stage, tensor_parallel_size
):
    overrides = SMALL | {
        "data.path": token_folder,
        "training.micro_batch_size": 1,
        "model.family": family,
        "parallel.zero_stage": zero_stage,
        "parallel.tensor_parallel_size": tensor_parallel_size,
    }
    live = process_group(2).run(train_and_save, overrides, tmp_path / "run")[0]
    from gpt_dist.checkpoint.opened import open_model, save_model

    save_model(open_model(tmp_path / "run"), tmp_path / "model")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    with torch.no_grad():
        logits = theirs(TOKENS).logits
    assert (logits - live).abs().max() < 1e-5
    assert live.std() > 0.05


def test_the_command_needs_no_launcher(process_group, token_folder, tmp_path):
    overrides = SMALL | {"data.path": token_folder, "training.micro_batch_size": 1}
    process_group(2).run(train_and_save, overrides, tmp_path / "run")
    checkpoint = tmp_path / "run/checkpoints/step-00000002"
    command = [sys.executable, "launch/consolidate.py", str(checkpoint), "--output"]
    finished = subprocess.run(
        [*command, str(tmp_path / "model")], capture_output=True, text=True, timeout=120, check=True
    )
    assert str(tmp_path / "model") in finished.stdout
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    text = "the miner said nothing.\nhe looked at the fire"
    ours = SentencePieceTokenizer(token_folder / "tokenizer.model").encode(text).tolist()
    assert tokenizer(text).input_ids == ours
    again = subprocess.run([*command, str(tmp_path / "model")], capture_output=True, text=True)
    assert again.returncode == 2
    # A CUDA build of torch on a machine with nvcc but no GPU warns first.
    assert again.stderr.splitlines()[-1].startswith("error: ")


CONSOLIDATE = """
import re, runpy, sys, threading, time
from pathlib import Path
import gpt_dist.finetune.task_model

def used():
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"RssAnon:\\s+(\\d+)", status)[1])

def watch():
    while True:
        seen.append(used())
        time.sleep(0.001)

seen = [used()]
threading.Thread(target=watch, daemon=True).start()
sys.argv[:1] = []
runpy.run_path(sys.argv[0], run_name="__main__")
print(max(seen) - seen[0], len(seen))
"""
"""Runs a script; then prints how much memory, but for mapped files, it took beside its imports,
and how often that was looked at."""


def test_consolidation_holds_a_tensor_at_a_time(process_group, token_folder, tmp_path):
    settings = SMALL | {"data.path": token_folder, "training.max_steps": 1}
    settings |= {"model.num_layers": 12, "model.hidden_size": 384, "model.num_heads": 4}
    settings |= {"validation.max_samples": 1, "parallel.tensor_parallel_size": 2}
    process_group(2).run(train, settings, tmp_path / "run")
    command = [sys.executable, "-c", CONSOLIDATE, "launch/consolidate.py", str(tmp_path / "run")]
    peaks = []
    for output in (tmp_path / "first", tmp_path / "second", tmp_path / "model"):
        finished = subprocess.run(
            [*command, "--output", str(output)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        peak, looks = map(int, finished.stdout.split()[-2:])
        assert looks > 50
        peaks.append(peak)
    largest, weights = 4 * 384 * 384 * 4, (tmp_path / "model/model.safetensors").stat().st_size
    # The allocator may keep some megabytes more in one run or another.
    assert min(peaks) < 12 * largest < weights / 3
