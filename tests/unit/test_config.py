"""Test how configurations are read and refused."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from gpt_dist.config import Config, ResolvedModelConfig
from gpt_dist.config.file import load_config
from gpt_dist.config.resolution import adopt_source, check_layout, resolve
from gpt_dist.errors import ConfigError
from gpt_dist.train.optimizer import learning_rate

SHIPPED = sorted(Path("configs/pretrain").glob("*.yaml"))


TASK = (
    "task: {name: t, form: classification, format: csv, columns: {text: a, label: b}, "
    "splits: {train: t.csv}, dev_fraction: 0.1, labels: [x, y], metric: accuracy}"
)


def load(tmp_path: Path, text: str = "", *overrides: str) -> Config:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return load_config(path, list(overrides))


def test_an_empty_file_gives_the_paper(tmp_path):
    config = load(tmp_path)
    model, optimizer = config.model, config.optimizer
    assert (model.num_layers, model.hidden_size, model.num_heads) == (12, 768, 12)
    assert (model.sequence_length, model.dropout, model.family) == (512, 0.1, "openai_gpt")
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
        ("model.family=mamba", r"model\.family: 'mamba' is unknown; .* gpt2, llama, openai_gpt"),
        ("model.num_layers=two", r"model\.num_layers: .*integer, not 'two'"),
        ("model.num_layers=2.5", r"model\.num_layers: .*integer, not 2\.5"),
        ("model.num_layers=true", r"model\.num_layers: .*integer, not true"),
        ("model.num_layers=0", r"model\.num_layers: .*greater than or equal to 1, not 0"),
        ("optimizer.learning_rate=.nan", r"optimizer\.learning_rate: .*finite number, not nan"),
        ("training.precision=fp8", r"training\.precision: .*'fp32', 'bf16' or 'fp16', not 'fp8'"),
        ("parallel.zero_stage=4", r"parallel\.zero_stage: .*0, 1, 2 or 3, not 4"),
        ("num_layers=2", r"expected section\.key=value"),
        ("model.num_layers", r"expected section\.key=value"),
        ("model.num_heads=5", r"model\.hidden_size 768 is not divisible by model\.num_heads 5;"),
        (
            "parallel.tensor_parallel_size=5",
            r"model\.num_heads 12 is not divisible by parallel\.tensor_parallel_size 5; choose",
        ),
        (
            "model.num_key_value_heads=5",
            r"model\.num_heads 12 is not divisible by model\.num_key_value_heads 5; choose",
        ),
        ("model.num_key_value_heads=0", r"model\.num_key_value_heads: .*or equal to 1, not 0"),
        ("model.rotary_base=0", r"model\.rotary_base: .*greater than 0, not 0"),
        ("model.family=1", r"model\.family: .*valid string, not 1; quote it"),
        ("model.norm_position=mid", r"model: norm_position 'mid' is not 'post' or 'pre'; give fam"),
        ("parallel.offload_optimizer=true", r"needs parallel\.zero_stage 1, 2 or 3, not 0"),
        (
            "parallel.sequence_parallel=true",
            r"parallel\.tensor_parallel_size is 1, so nothing is spl",
        ),
        ("model.transferred_layers=1", r"model\.transferred_layers: there is no model\.source"),
        ("optimizer.betas=[2, 0.9]", r"optimizer\.betas\.0: .*less than 1, not 2"),
        (
            "task.columns={label:b}",
            r"task\.columns\.label:b: .*valid string or a valid integer or a valid array, not null",
        ),
        (
            "task.splits={dev: {path: x, colums: {}}}",
            r"task\.splits\.dev\.colums: unknown key; did you mean task\.splits\.dev\.columns",
        ),
        ("task.labels=[0, 'b']", r"task\.labels\.0: .*valid string, not 0; quote it"),
        ("task.columns={text: 1.5}", r"task\.columns\.text: .* valid array, not 1\.5; quote it"),
        ("task.name=true", r"task\.name: .*valid string, not true; quote it"),
        ("data.path=[unclosed", r"data\.path: '\[unclosed' is not a YAML value"),
    ],
)
def test_a_bad_override_is_refused_by_name(tmp_path, override, expected):
    with pytest.raises(ConfigError, match=expected):
        load(tmp_path, "", override)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.path=tokens", r"data\.changes: data\.path is not a list"),
        ("data.path=[]", r"data\.path: .*at least 1 item"),
        ("data.path=[{path: a}]", r"data\.path\.0\.weight: not given"),
        ("data.path=[{path: a, weigth: 1}]", r"weigth: unknown key; did you mean .*\.weight\?"),
        ("data.path=[{path: a, weight: -1}]", r"data\.path\.0\.weight: .*or equal to 0, not -1"),
        (
            "data.path=[{path: a, weight: 1}]",
            r"data\.changes at step 4: 2 weights for the 1 folders",
        ),
        (
            "data.changes=[{step: 4, weights: [0, 0]}]",
            r"data\.changes at step 4: all weights are 0",
        ),
        (
            "data.changes=[{step: 0, weights: [1, 0]}]",
            r"data\.changes\.0\.step: .*equal to 1, not 0",
        ),
        (
            "data.changes=[{step: 9, weights: [1, 0]}, {step: 4, weights: [0, 1]}]",
            r"data\.changes: steps \[9, 4\] do not ascend",
        ),
    ],
)
def test_a_bad_mixture_is_refused_by_name(tmp_path, override, expected):
    text = (
        "data: {path: [{path: a, weight: 1}, {path: b, weight: 0}], "
        "changes: [{step: 4, weights: [1, 2]}]}"
    )
    load(tmp_path, text)
    with pytest.raises(ConfigError, match=expected):
        load(tmp_path, text, override)


def test_a_mixture_in_fine_tuning_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.path: a list; fine-tuning takes one folder"):
        load(tmp_path, TASK, "data.path=[{path: a, weight: 1}]")


def test_a_value_of_several_types_that_is_wrong_within_is_named_once(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "", "task.splits={dev: {path: x, colums: {}}}")
    assert "task.splits.dev:" not in str(caught.value)


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


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["training.max_steps=3", "training.epochs=5"],
            r"training\.epochs: .*max_steps is given too",
        ),
        (
            ["schedule.warmup_steps=3", "schedule.warmup_fraction=0.5"],
            r"schedule\.warmup_fraction: schedule\.warmup_steps is given too",
        ),
        (
            ["model.norm_position=pre", "model.family=llama"],
            "norm_position pre means family gpt2, not llama",
        ),
    ],
)
@pytest.mark.parametrize("text", ["", "training: {max_steps: 3}\nmodel: {family: llama}"])
def test_two_keys_of_the_command_line_that_contradict_are_refused(
    tmp_path, text, overrides, expected
):
    for order in (overrides, overrides[::-1]):
        with pytest.raises(ConfigError, match=expected):
            load(tmp_path, text, *order)


def test_two_ways_to_say_the_warm_up_exclude_each_other(tmp_path):
    with pytest.raises(ConfigError, match=r"schedule\.warmup_fraction: .* leave one of them out"):
        load(tmp_path, "schedule: {warmup_steps: 5, warmup_fraction: 0.1}")


def test_steps_and_epochs_exclude_each_other(tmp_path):
    with pytest.raises(ConfigError, match=r"training\.epochs: training\.max_steps is given too"):
        load(tmp_path, "training: {max_steps: 5, epochs: 1}")


@pytest.mark.parametrize(
    "text",
    [
        *("yes", "off", "2024-01-01", "1:30", "12:30:45", "=", "<<", "'010'", "!!str 010"),
        *("1_000", "0b11", "1_0.5", "0o8", "-0x1", "1e", "+.nan"),
    ],
)
def test_yaml_1_1_s_dates_sexagesimals_and_booleans_are_text(tmp_path, text):
    meant = text.removeprefix("!!str ").strip("'")
    assert load(tmp_path, f"run: {{directory: {text}}}").run.directory == meant
    assert load(tmp_path, "", f"run.directory={text}").run.directory == meant


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("model.num_layers", "010", 10),
        ("model.num_layers", "0x10", 16),
        ("model.num_layers", "0o17", 15),
        ("optimizer.learning_rate", "1e-4", 1e-4),
        ("optimizer.learning_rate", "5", 5.0),
        ("parallel.offload_optimizer", "FALSE", False),
        ("optimizer.learning_rate", "+.5e1", 5.0),
        ("run.directory", r'"\ud83d\ude00"', "😀"),
        ("model.source", "null", None),
        ("model.source", "~", None),
        ("model.source", "", None),
        ("run.seeds", "[1,2, 3]", [1, 2, 3]),
    ],
)
def test_values_are_those_of_yaml_1_2(tmp_path, key, text, expected):
    section, name = key.split(".")
    for config in (
        load(tmp_path, f"{section}: {{ {name}: {text} }}"),
        load(tmp_path, "", f"{key}={text}"),
    ):
        assert getattr(getattr(config, section), name) == expected


def test_a_directive_does_not_bring_yaml_1_1_back(tmp_path):
    config = load(tmp_path, "%YAML 1.1\n---\nmodel: {num_layers: 010}\nrun: {directory: 1:30}")
    assert (config.model.num_layers, config.run.directory) == (10, "1:30")


def test_a_key_given_twice_is_an_error_that_names_its_line(tmp_path):
    with pytest.raises(
        ConfigError, match=r"config\.yaml: .* line 2: the key 'model' is given twice"
    ):
        load(tmp_path, "model: {num_layers: 1}\nmodel: {hidden_size: 64}")


# Each alias doubles what the one before stands for.
BOMB = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 99))


@pytest.mark.parametrize(
    "text",
    [
        "- a list",
        "key: [unclosed",
        "run: !!python/object:os.system {}",
        "run: {directory: !!python/name:os.system }",
        "run: {directory: !!binary aGk=}",
        "run: {directory: !!timestamp 2024-01-01 , seed: !!int x}",
        "run: {seed: !!bool maybe}",
        "run: {seed: !!float ''}",
        "run: !!set {directory}",
        "? [a, [b]]\n: c",
        "? {a: b}\n: c",
        "run: &a {directory: *a}",
        "run: &a [*a]",
        "run: *absent",
        'run: {directory: "\\ud800"}',
        "run: {directory: \x01}",
        f"run: {{seed: {'9' * 5000}}}",
        "one: 1\n---\ntwo: 2",
        f"run: {'[' * 1500}",
        "a0: &a0 []\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 1500)),
        BOMB,
        f"{BOMB}run: *a98\nrun: 1",
        BOMB.replace("[x]", "{x: 1}").replace("[", "{<<: [").replace("]", "]}"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused_by_name(tmp_path, text):
    with pytest.raises(ConfigError, match=r"config\.yaml") as refused:
        load(tmp_path, text)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300


def test_a_file_that_is_absent_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "absent.yaml", [])


def test_a_section_that_others_repeat_can_be_changed_alone(tmp_path):
    text = "validation: &every {interval: 5}\ncheckpoint: *every"
    config = load(tmp_path, text, "validation.interval=7")
    assert (config.validation.interval, config.checkpoint.interval) == (7, 5)


AWKWARD = [
    *(
        "010",
        "1:30",
        "1e-4",
        "0x10",
        "1_000",
        "._",
        "-_",
        ".5",
        ".5e3",
        "0b1",
        "2024-01-01",
        "-.inf",
        ".nan",
    ),
    *("yes", "null", "~", "", "true", "=", "<<", "- a", "a: b", "a:", "#x", "a #x", "-", "? x"),
    *("[", "{", "&a", "*a", "!a", "|", ">", "%YAML 1.1", "---", "...", "@", "`", "'", '"', "\\"),
    *(" a", "a ", "\t", "a\tb", "\n", "a\n b\n", "\n\n a", "\r", "a\r\nb", "\x01\x07\x1b\x7f"),
    *("\x85_", "\xa0", "\u2028", "\u2029a", "\ufeff", "\ufffe", "é🙂", "a" * 999, "word " * 99),
]


def test_what_is_saved_is_read_back_whatever_its_text(tmp_path):
    draws = random.Random(0)
    mixtures = ["".join(draws.choices(AWKWARD, k=draws.randint(2, 20))) for _ in range(300)]
    strings = AWKWARD + mixtures
    config = resolve(load(tmp_path, TASK), world_size=1, vocab_size=400, samples=10)
    everywhere: dict[str, Any] = {
        "labels": strings,
        "columns": {str(number): string for number, string in enumerate(strings)},
        "paper": dict.fromkeys(strings, 1e-7),
    }
    task = config.task.model_copy(update=everywhere)
    config.model_copy(update={"task": task}).save(tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml", []).task == task


@pytest.mark.parametrize(
    ("overrides", "world_size", "expected"),
    [
        (["parallel.tensor_parallel_size=2"], 3, "2 does not divide the 3 launched"),
        (["training.global_batch_size=10"], 4, "10 is not a multiple of 4, 4 data-parallel"),
        (["training.micro_batch_size=48"], 1, r"64 is not a multiple of .*micro_batch_size 48"),
        (["training.precision=fp16"], 1, r"training\.precision: fp16 needs a CUDA device"),
        (
            ["training.compile=true", "parallel.zero_stage=3"],
            2,
            r"training\.compile: .* weights that ZeRO 3 partitions",
        ),
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


def test_a_length_that_sequence_parallelism_cannot_split_is_refused(tmp_path):
    overrides = ["parallel.tensor_parallel_size=2", "parallel.sequence_parallel=true"]
    assert load(tmp_path, "", *overrides).parallel.sequence_parallel
    with pytest.raises(ConfigError, match=r"parallel\.sequence_parallel: .*length 511 is not div"):
        load(tmp_path, "", *overrides, "model.sequence_length=511")
    with pytest.raises(ConfigError, match=r"parallel\.sequence_parallel: the sequences of a task"):
        load(tmp_path, TASK, *overrides)


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
    overrides = ["schedule.warmup_fraction=0.5", "training.epochs=2", "optimizer.epsilon=1e-16"]
    resolved = resolve(load(tmp_path, "", *overrides), world_size=2, vocab_size=400, samples=100)
    resolved.save(tmp_path / "saved.yaml")
    saved = load_config(tmp_path / "saved.yaml", [])
    assert saved.model_dump() == resolved.model_dump()
    assert resolve(saved, world_size=2, vocab_size=400, samples=7) == resolved
    assert list(saved.model_dump()["model"]) == list(Config().model_dump()["model"])


@pytest.mark.parametrize(("position", "family"), [("post", "openai_gpt"), ("pre", "gpt2")])
def test_norm_position_of_earlier_versions_means_a_family(tmp_path, position, family):
    section = f"model: {{norm_position: {position}}}"
    for config in (
        load(tmp_path, section),
        load(tmp_path, "", f"model.norm_position={position}"),
        load(tmp_path, "model: {family: other}", f"model.norm_position={position}"),
        load(tmp_path, f"model: {{norm_position: {position}, family: {family}}}"),
    ):
        assert config.model.family == family
        assert "family" in config.model.model_fields_set
        assert "norm_position" not in config.model_dump(mode="json")["model"]
    assert load(tmp_path, section, "model.family=llama").model.family == "llama"
    with pytest.raises(ConfigError, match=f"norm_position {position} means family {family}, not x"):
        load(tmp_path, f"model: {{norm_position: {position}, family: x}}")


def test_key_and_value_heads_are_shared_by_whole_groups(tmp_path):
    heads = ["model.num_heads=8", "model.hidden_size=64", "model.num_key_value_heads=2"]
    assert load(tmp_path, "", *heads, "parallel.tensor_parallel_size=2").model.head_size == 8
    with pytest.raises(
        ConfigError,
        match=r"model\.num_key_value_heads 2 is not divisible by parallel\.tensor_parallel_size 4",
    ):
        load(tmp_path, "", *heads, "parallel.tensor_parallel_size=4")


def test_a_feed_forward_layer_is_shared_by_whole_features(tmp_path):
    inner = ["model.family=llama", "model.feed_forward_size=301"]
    assert load(tmp_path, "", *inner).model.feed_forward_size == 301
    with pytest.raises(
        ConfigError,
        match=r"model\.feed_forward_size 301 is not divisible by parallel\.tensor_parallel_size 2",
    ):
        load(tmp_path, "", *inner, "parallel.tensor_parallel_size=2")


SOURCE = ResolvedModelConfig(
    family="llama", hidden_size=64, num_heads=8, num_key_value_heads=2, vocab_size=400
)


def test_a_source_gives_family_and_sizes(tmp_path):
    text = "model: {source: s, num_heads: 8, num_key_value_heads: null, dropout: 0.5}"
    model = adopt_source(load(tmp_path, text), SOURCE).model
    assert (model.family, model.num_key_value_heads, model.hidden_size) == ("llama", 2, 64)
    assert (model.vocab_size, model.dropout, model.source) == (None, 0.5, "s")


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (
            "family=gpt2",
            r"model\.family: gpt2 is not the llama of model\.source s; leave the key out",
        ),
        ("norm_position=post", r"model\.family: openai_gpt is not the llama of"),
        ("num_key_value_heads=4", r"model\.num_key_value_heads: 4 is not the 2 of"),
        ("feed_forward_size=99", r"model\.feed_forward_size: 99 is not the default of"),
        ("rotary_base=1e4", r"model\.rotary_base: 10000\.0 is not the default of"),
    ],
)
def test_another_model_than_the_source_s_is_refused(tmp_path, key, expected):
    with pytest.raises(ConfigError, match=expected):
        adopt_source(load(tmp_path, "model: {source: s}", f"model.{key}"), SOURCE)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ({}, r"model\.num_key_value_heads 2 is not divisible by"),
        (
            {"num_key_value_heads": 4, "feed_forward_size": 97},
            r"model\.feed_forward_size 97 is not divisible by parallel\.tensor_parallel_size 4",
        ),
    ],
)
def test_a_source_whose_layers_cannot_be_shared_is_refused(tmp_path, size, expected):
    config = load(tmp_path, "model: {source: s}", "parallel.tensor_parallel_size=4")
    with pytest.raises(ConfigError, match=expected):
        adopt_source(config, SOURCE.model_copy(update=size))


@pytest.mark.parametrize(
    "overrides",
    [
        ["schedule.decay_steps=50", "schedule.warmup_steps=100"],
        ["schedule.decay_steps=50", "schedule.warmup_steps=100", "training.max_steps=100"],
        ["schedule.decay_steps=50", "training.max_steps=3000"],
    ],
)
def test_a_decay_that_ends_before_the_warm_up_is_refused(tmp_path, overrides):
    with pytest.raises(
        ConfigError,
        match=r"schedule\.decay_steps 50 is less than schedule\.warmup_steps \d+, .* to null",
    ):
        load(tmp_path, "", *overrides)


def test_so_is_one_within_a_fraction_of_the_run(tmp_path):
    overrides = [
        "schedule.decay_steps=50",
        "schedule.warmup_fraction=0.5",
        "training.max_steps=200",
    ]
    config = load(tmp_path, "", *overrides)
    with pytest.raises(
        ConfigError, match=r"decay_steps 50 is less than schedule\.warmup_steps 100"
    ):
        resolve(config, world_size=1, vocab_size=400, samples=10)


@pytest.mark.parametrize(
    "overrides",
    [
        ["training.max_steps=50"],
        ["training.max_steps=50", "schedule.decay_steps=50"],
        ["training.max_steps=50", "schedule.warmup_fraction=1"],
        ["training.max_steps=50", "schedule.decay_steps=20", "schedule.shape=constant"],
    ],
)
def test_a_run_may_be_all_warm_up(tmp_path, overrides):
    config = load(tmp_path, "", *overrides)
    resolved = resolve(config, world_size=1, vocab_size=400, samples=10)
    rates = [learning_rate(step, 1.0, resolved.schedule) for step in range(1, 51)]
    assert min(rates) > 0
    assert rates == sorted(rates)


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
