"""Configurations: what is read, what is refused, and in which words."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpt_dist.config import Config
from gpt_dist.config.file import load_config
from gpt_dist.config.resolution import check_layout, resolve
from gpt_dist.errors import ConfigError

SHIPPED = sorted(Path("configs/pretrain").glob("*.yaml"))


def load(tmp_path: Path, text: str = "", *overrides: str) -> Config:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return load_config(path, list(overrides))


def test_an_empty_file_gives_the_paper(tmp_path):
    config = load(tmp_path)
    model, optimizer = config.model, config.optimizer
    assert (model.num_layers, model.hidden_size, model.num_heads) == (12, 768, 12)
    assert (model.sequence_length, model.dropout, model.norm_position) == (512, 0.1, "post")
    assert (optimizer.learning_rate, optimizer.weight_decay) == (2.5e-4, 0.01)
    assert optimizer.betas == (0.9, 0.999)
    assert (config.schedule.warmup_steps, config.schedule.shape) == (2000, "cosine")
    assert config.training.global_batch_size == 64


def test_overrides_win_and_numbers_without_a_dot_are_numbers(tmp_path):
    config = load(
        tmp_path,
        "optimizer: {learning_rate: 1.0}",
        "optimizer.learning_rate=1e-3",
        "optimizer.betas=[0.8, 0.9]",
        "data.path=a=b",
    )
    assert config.optimizer.learning_rate == 1e-3
    assert config.optimizer.betas == (0.8, 0.9)
    assert config.data.path == "a=b"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model.num_layrs=2", r"model\.num_layrs: unknown key; did you mean model\.num_layers"),
        ("modle.num_layers=2", "modle: unknown key; did you mean model"),
        ("model.num_layers=two", r"model\.num_layers: .*integer, not 'two'"),
        ("model.num_layers=2.5", r"model\.num_layers: .*integer, not 2\.5"),
        ("model.num_layers=true", r"model\.num_layers: .*integer, not True"),
        ("model.num_layers=0", r"model\.num_layers: .*greater than or equal to 1, not 0"),
        ("optimizer.learning_rate=.nan", r"optimizer\.learning_rate: .*finite number, not nan"),
        ("training.precision=fp8", r"training\.precision: .*'fp32', 'bf16' or 'fp16', not 'fp8'"),
        ("parallel.zero_stage=4", r"parallel\.zero_stage: .*0, 1, 2 or 3, not 4"),
        ("num_layers=2", r"expected section\.key=value"),
        ("model.num_layers", r"expected section\.key=value"),
        ("model.num_heads=5", r"model\.num_heads: 5 does not divide model\.hidden_size 768"),
        ("parallel.tensor_parallel_size=5", r"5 does not divide model\.num_heads 12"),
        ("parallel.offload_optimizer=true", r"needs parallel\.zero_stage 1, 2 or 3, not 0"),
        ("model.transferred_layers=1", r"model\.transferred_layers: no model\.source"),
        ("optimizer.betas=[2, 0.9]", r"optimizer\.betas\.0: .*less than 1, not 2"),
        (
            "task.columns={label:b}",
            r"task\.columns\.label:b: .*valid string or a valid integer or a valid array, not None",
        ),
        (
            "task.splits={dev: {path: x, colums: {}}}",
            r"task\.splits\.dev\.colums: unknown key; did you mean task\.splits\.dev\.columns",
        ),
        ("task.labels=[0, 'b']", r"task\.labels\.0: .*valid string, not 0; quote it"),
        ("task.columns={text: 1.5}", r"task\.columns\.text: .* valid array, not 1\.5; quote it"),
        ("task.name=true", r"task\.name: .*valid string, not True; quote it"),
        ("data.path=[unclosed", r"data\.path: '\[unclosed' is not a YAML value"),
    ],
)
def test_a_bad_override_is_refused_by_name(tmp_path, override, expected):
    with pytest.raises(ConfigError, match=expected):
        load(tmp_path, "", override)


def test_a_value_of_several_types_that_is_wrong_within_is_named_once(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "", "task.splits={dev: {path: x, colums: {}}}")
    assert "task.splits.dev:" not in str(caught.value)


TASK = (
    "task: {name: t, form: classification, format: csv, columns: {text: a, label: b}, "
    "splits: {train: t.csv}, dev_fraction: 0.1, labels: [x, y], metric: accuracy}"
)


def test_what_a_task_leaves_out_is_the_paper_s_of_fine_tuning(tmp_path):
    config = load(tmp_path, TASK)
    assert (config.optimizer.learning_rate, config.training.global_batch_size) == (6.25e-5, 32)
    assert (config.schedule.warmup_fraction, config.schedule.shape) == (0.002, "linear")
    assert (config.training.epochs, config.objective.auxiliary_weight) == (3, 0.5)
    assert config.run.directory == "runs/finetune"
    own = load(tmp_path, TASK, "training.max_steps=9", "schedule.warmup_steps=1")
    assert (own.training.max_steps, own.training.epochs) == (9, None)
    assert (own.schedule.warmup_steps, own.schedule.warmup_fraction) == (1, None)


@pytest.mark.parametrize("section", ["training: {max_steps: 200}", "training: {epochs: 9}"])
def test_a_length_of_null_is_not_given(tmp_path, section):
    text = f"{TASK}\n{section}\nschedule: {{warmup_steps: 5}}"
    nulls = ("training.max_steps=null", "training.epochs=null", "schedule.warmup_steps=null")
    config = load(tmp_path, text, *nulls)
    assert (config.training.max_steps, config.training.epochs) == (None, 3)
    assert config.schedule.warmup_fraction == 0.002
    resolved = resolve(config, world_size=1, vocab_size=400, samples=320)
    assert (resolved.training.max_steps, resolved.schedule.warmup_steps) == (30, 0)


def test_the_paper_s_figures_go_with_their_metric(tmp_path):
    text = TASK.replace("metric: accuracy", "metric: f1, paper: {dev: 82.3}")
    assert load(tmp_path, text).task.paper == {"dev": 82.3}
    assert load(tmp_path, text, "task.metric=f1").task.paper == {"dev": 82.3}
    assert load(tmp_path, text, "task.metric=accuracy").task.paper == {}
    both = ["task.metric=accuracy", "task.paper.dev=75"]
    assert load(tmp_path, text, *both).task.paper == {"dev": 75}
    assert load(tmp_path, text, *reversed(both)).task.paper == {"dev": 75}


def test_a_key_below_a_key_can_be_set(tmp_path):
    config = load(tmp_path, TASK, "task.columns.text=c", "task.splits.dev.path=d.csv")
    assert config.task.columns == {"text": "c", "label": "b"}
    assert config.task.splits["dev"].path == "d.csv"
    with pytest.raises(ConfigError, match=r"task\.name: expected keys and values, found 't'"):
        load(tmp_path, TASK, "task.name.first=x")


def test_a_length_on_the_command_line_stands_for_the_file_s(tmp_path):
    config = load(tmp_path, "training: {epochs: 3}", "training.max_steps=50")
    assert (config.training.max_steps, config.training.epochs) == (50, None)
    config = load(tmp_path, "training: {max_steps: 5}", "training.epochs=2")
    assert (config.training.max_steps, config.training.epochs) == (None, 2)


def test_two_ways_to_say_the_warm_up_exclude_each_other(tmp_path):
    with pytest.raises(ConfigError, match=r"schedule\.warmup_fraction: .* leave one of them out"):
        load(tmp_path, "schedule: {warmup_steps: 5, warmup_fraction: 0.1}")


def test_steps_and_epochs_exclude_each_other(tmp_path):
    with pytest.raises(ConfigError, match=r"training\.epochs: training\.max_steps is given too"):
        load(tmp_path, "training: {max_steps: 5, epochs: 1}")


def test_a_date_is_text_and_a_key_given_twice_an_error(tmp_path):
    assert load(tmp_path, "", "run.directory=2024-01-01").run.directory == "2024-01-01"
    with pytest.raises(ConfigError, match="the key 'model' is given twice"):
        load(tmp_path, "model: {num_layers: 1}\nmodel: {hidden_size: 64}")


def test_a_file_that_is_no_configuration_is_refused_by_name(tmp_path):
    for text in ("- a list", "key: [unclosed", "run: !!python/object:os.system {}"):
        with pytest.raises(ConfigError, match=r"config\.yaml") as refused:
            load(tmp_path, text)
        assert "\n" not in str(refused.value)
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "absent.yaml", [])


@pytest.mark.parametrize(
    ("overrides", "world_size", "expected"),
    [
        (["parallel.tensor_parallel_size=2"], 3, "2 does not divide the 3 launched"),
        (["training.global_batch_size=10"], 4, "10 is not a multiple of 4, 4 data-parallel"),
        (["training.micro_batch_size=48"], 1, r"64 is not a multiple of .*micro_batch_size 48"),
        (["training.precision=fp16"], 1, r"training\.precision: fp16 needs a CUDA device"),
    ],
)
def test_a_launch_that_does_not_fit_is_refused(tmp_path, overrides, world_size, expected):
    with pytest.raises(ConfigError, match=expected):
        check_layout(load(tmp_path, "", *overrides), world_size, "cpu")


def test_another_vocabulary_than_the_tokens_is_refused(tmp_path):
    config = load(tmp_path, "model: {vocab_size: 300}")
    with pytest.raises(
        ConfigError, match=r"model\.vocab_size: 300 is not the 400 of the data.s tokenizer"
    ):
        resolve(config, world_size=1, vocab_size=400, samples=10)


def test_a_vocabulary_that_cannot_be_shared_is_refused(tmp_path):
    config = load(tmp_path, "", "model.num_heads=6", "parallel.tensor_parallel_size=3")
    with pytest.raises(ConfigError, match="3 does not divide the vocabulary, 400 padded to 512"):
        resolve(config, world_size=3, vocab_size=400, samples=10)


def test_resolving_fills_in_what_data_and_launch_decide(tmp_path):
    config = load(tmp_path, "training: {epochs: 3, global_batch_size: 8}")
    resolved = resolve(config, world_size=2, vocab_size=400, samples=100)
    assert resolved.model.vocab_size == 400
    assert resolved.model.padded_vocab_size == 512
    assert resolved.training.max_steps == 38  # 300 windows in batches of 8, rounded up
    assert resolved.training.micro_batch_size == 4
    assert resolved.schedule.decay_steps == 38


def test_a_resolved_configuration_is_read_back_the_same(tmp_path):
    resolved = resolve(load(tmp_path), world_size=2, vocab_size=400, samples=100)
    resolved.save(tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml", []) == resolved


@pytest.mark.parametrize(
    ("path", "nodes"),
    # tiny is for a laptop: 64 processes are more than its batch has sequences.
    [(path, n) for path in SHIPPED for n in (1, 8) if (path.stem, n) != ("tiny", 8)],
    ids=lambda value: getattr(value, "stem", value),
)
def test_every_shipped_configuration_is_valid_on_nodes_of_eight(path, nodes):
    config = load_config(path, ["training.micro_batch_size=1"] if nodes == 8 else [])
    check_layout(config, 8 * nodes, "cuda")
    resolve(config, 8 * nodes, vocab_size=40_000, samples=10**6)
