"""Every family under DeepSpeed, in every stage, against transformers; sizes that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gpt_dist.config import ResolvedConfig
from gpt_dist.config.file import load_config
from gpt_dist.errors import ConfigError
from gpt_dist.model import family_of
from gpt_dist.rendezvous import Launch
from gpt_dist.topology import form_groups
from tests.distributed.test_layouts import SMALL
from tests.distributed.test_model import TOLERANCE, VOCAB_SIZE, for_four, model_config, reference
from tests.models import FAMILIES, from_hugging_face
from tests.moments import gradient_differences
from tests.rows import assert_same, read_rows
from tests.runs import train


def step_beside_theirs(
    launch: Launch,
    device: torch.device,
    family: str,
    zero_stage: int,
    tensor: int,
    sequence_parallel: bool = False,
) -> dict[str, float]:
    """Differences of a step's loss and gradients from those of transformers."""
    from gpt_dist.data.batches import TokenBatch
    from gpt_dist.model import GPT, load_full_tensors
    from gpt_dist.train.engine import Engine
    from gpt_dist.train.objective import LanguageModelObjective

    topology = form_groups(launch, device, tensor)
    size, rank = topology.data_parallel_size, topology.data_parallel_rank
    sizes = for_four(model_config(family)) if tensor == 4 else model_config(family)
    sections: dict[str, Any] = {
        "model": sizes.model_dump(),
        "parallel": {
            "zero_stage": zero_stage,
            "tensor_parallel_size": tensor,
            "sequence_parallel": sequence_parallel,
        },
        "schedule": {"decay_steps": 1, "warmup_steps": 0},
        "training": {"max_steps": 1, "global_batch_size": 4, "micro_batch_size": 4 // size},
        "validation": {"interval": 1},
        "checkpoint": {"interval": 1},
        "optimizer": {"clip_norm": 0},
    }
    config = ResolvedConfig.model_validate(sections)
    theirs = reference(sizes)
    group = topology.tensor_parallel_group
    model = GPT(config.model, group, sequence_parallel=sequence_parallel)
    load_full_tensors(model, from_hugging_face(theirs.state_dict(), sizes))
    tokens = torch.randint(VOCAB_SIZE, (4, 21), generator=torch.Generator().manual_seed(1))
    expected = theirs(tokens, labels=tokens).loss
    expected.backward()
    engine = Engine(LanguageModelObjective(model), config, topology)
    own = tokens.chunk(size)[rank]
    loss, _ = engine.train_batch([TokenBatch(own[:, :-1], own[:, 1:])], 1e-3)
    state = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    gradients = {f"model.{k}": v for k, v in from_hugging_face(state, sizes).items()}
    differences = gradient_differences(engine, gradients, topology)
    return {"loss": abs(float(loss) - float(expected.detach())), **differences}


@pytest.mark.parametrize("tensor_parallel_size", [1, 2])
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_is_transformers(process_group, family, zero_stage, tensor_parallel_size):
    for differences in process_group(2).run(
        step_beside_theirs, family, zero_stage, tensor_parallel_size
    ):
        assert differences == pytest.approx(dict.fromkeys(differences, 0.0), abs=TOLERANCE)


@pytest.mark.parametrize("zero_stage", [0, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_of_four_tensor_parallel_processes_is_transformers(
    process_group, family, zero_stage
):
    for differences in process_group(4).run(step_beside_theirs, family, zero_stage, 4):
        assert differences == pytest.approx(dict.fromkeys(differences, 0.0), abs=TOLERANCE)


@pytest.mark.parametrize(
    ("family", "zero_stage", "processes", "tensor_parallel_size"),
    [
        *((family, 0, size, size) for family in FAMILIES for size in (2, 4)),
        ("openai_gpt", 1, 4, 2),
        ("gpt2", 2, 4, 2),
        ("llama", 3, 4, 2),
    ],
)
def test_a_sequence_parallel_step_is_transformers(
    process_group, family, zero_stage, processes, tensor_parallel_size
):
    layout = zero_stage, tensor_parallel_size, True
    for differences in process_group(processes).run(step_beside_theirs, family, *layout):
        assert differences == pytest.approx(dict.fromkeys(differences, 0.0), abs=TOLERANCE)


@pytest.mark.parametrize(
    "layouts",
    [
        [
            {"parallel.tensor_parallel_size": 2, "parallel.zero_stage": 1},
            {"parallel.zero_stage": 3},
        ],
        [
            {"parallel.tensor_parallel_size": 2, "parallel.sequence_parallel": value}
            for value in ("true", "false")
        ],
    ],
    ids=["layout", "sequence_parallel"],
)
def test_llama_goes_on_in_another_layout(process_group, token_folder, tmp_path, layouts):
    settings = SMALL | {"data.path": token_folder, "model.family": "llama", "model.dropout": 0}
    settings |= {"model.num_key_value_heads": 2, "training.max_steps": 8, "schedule.decay_steps": 8}
    settings["validation.interval"] = 4
    process_group(1).run(train, settings, tmp_path / "whole")
    directory, half = tmp_path / "parts", {"training.max_steps": 4}
    process_group(2).run(train, settings | half | layouts[0], directory)
    process_group(2).run(train, settings | layouts[1], directory)
    assert_same(read_rows(directory), read_rows(tmp_path / "whole"), 1e-5)


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (
            ["model.family=bert"],
            "model.family: 'bert' is unknown; choose one of gpt2, llama, openai_gpt",
        ),
        (["model.rotary_base=500"], "model.rotary_base: 500.0 is given, but model.family"),
        (
            ["model.family=llama", "model.hidden_size=12", "model.num_heads=4"],
            "model.num_heads: 4 heads of 3 features each",
        ),
    ],
)
def test_sizes_that_a_family_cannot_have_are_refused(overrides, problem):
    with pytest.raises(ConfigError, match=problem):
        family_of(load_config(Path("configs/pretrain/tiny.yaml"), overrides).model)


def test_fewer_key_value_heads_than_tensor_parallel_processes_are_refused():
    overrides = ["model.family=llama", "model.num_key_value_heads=2"]
    with pytest.raises(ConfigError, match=r"model\.num_key_value_heads"):
        load_config(
            Path("configs/pretrain/tiny.yaml"), [*overrides, "parallel.tensor_parallel_size=4"]
        )
