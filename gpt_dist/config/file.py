"""Reads a configuration from a YAML file and `section.key=value` of the command line."""

from __future__ import annotations

import difflib
import json
import re
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from gpt_dist.config import FINE_TUNING_DEFAULTS, Config, Section, SplitConfig
from gpt_dist.config.resolution import check_combinations
from gpt_dist.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """Safe YAML in which `1e-4` is a number, dates, `yes` and `no` are text, and a key given twice
    is an error.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 -- as the base class has it
        first: [pair for pair in resolvers if not pair[0].endswith((":timestamp", ":bool"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                problem = f"the key {name!r} is given twice"
                raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile("^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def load_config(path: Path, overrides: list[str]) -> Config:
    """Read a YAML file, apply `section.key=value` overrides, check all but what data decides.

    Raises ConfigError with the dotted name, the value and the remedy.
    """
    values = _read_yaml(path)
    # What takes another key out goes first: the command line may give that key too.
    for override in sorted(overrides, key=lambda text: text.partition("=")[0] not in _REPLACED):
        _apply(values, override)
    if values.get("task") is not None:
        _fill_in_fine_tuning(values)
    try:
        # JSON mode is strict about types (no true for 1) and yet takes lists as tuples.
        config = Config.model_validate_json(json.dumps(values), strict=True)
    except (ValidationError, TypeError) as error:
        raise ConfigError(_explain(error, path)) from None
    check_combinations(config)
    return config


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = _Loader(path.read_text(encoding="utf-8")).get_single_data()
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; see configs/ for examples") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: not a readable YAML file: {reason}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected sections such as `model:`, found {values!r}")
    return values


_REPLACED = {
    "training.max_steps": "training.epochs",
    "training.epochs": "training.max_steps",
    "schedule.warmup_steps": "schedule.warmup_fraction",
    "schedule.warmup_fraction": "schedule.warmup_steps",
    "task.metric": "task.paper",
}
"""A new value of a key on the command line takes another out of the file: one that says the same in
another way, or that holds for the old value only."""


def _apply(values: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    *outer, key = name.split(".")
    if not (equals and outer and all(outer) and key):
        raise ConfigError(f"{override!r}: expected section.key=value, as in training.max_steps=100")
    try:
        value = _Loader(text).get_single_data()
    except yaml.YAMLError:
        raise ConfigError(f"{name}: {text!r} is not a YAML value; quote it") from None
    section = values
    for depth, part in enumerate(outer, 1):
        if section.get(part) is None:
            section[part] = {}
        section = section[part]
        if not isinstance(section, dict):
            place = ".".join(outer[:depth])
            raise ConfigError(f"{place}: expected keys and values, found {section!r}")
    if name in _REPLACED and value not in (None, section.get(key)):
        section.pop(_REPLACED[name].rpartition(".")[2], None)
    section[key] = value


def _fill_in_fine_tuning(values: dict[str, Any]) -> None:
    """What is left out of a configuration with a task, or null, is the paper's of fine-tuning."""
    for name, value in FINE_TUNING_DEFAULTS.items():
        section, _, key = name.partition(".")
        if values.get(section) is None:
            values[section] = {}
        given = values[section]
        if not isinstance(given, dict):
            continue
        other = _REPLACED.get(name, name).rpartition(".")[2]
        if given.get(key) is None and given.get(other) is None:
            given.pop(other, None)
            given[key] = value


def _explain(error: ValidationError | TypeError, path: Path) -> str:
    """One line for each thing that pydantic found wrong."""
    if isinstance(error, TypeError):
        return f"{path}: {error}; keys and values must be plain YAML"
    wrong: dict[str, list[str]] = {}
    for problem in error.errors():
        location = tuple(part for part in problem["loc"] if not _is_type(part))
        if problem["type"] == "extra_forbidden":
            what = f"unknown key; {_suggest(location)}"
        elif problem["type"] == "missing":
            what = "not given, and there is no default"
        else:
            what = f"{problem['msg']}, not {problem['input']!r}"
            if problem["type"] == "string_type" and isinstance(problem["input"], int | float):
                what += "; quote it"
        wrong.setdefault(".".join(map(str, location)), []).append(what)
    # Where a value may be of several types, one that fits but for a key is the one that was meant.
    outer = {name for name in wrong if any(other.startswith(f"{name}.") for other in wrong)}
    return "\n".join(f"{name}: {_either(wrong[name])}" for name in wrong if name not in outer)


def _is_type(part: int | str) -> bool:
    """Whether a part of pydantic's location names a type that was tried, and not a key."""
    return part in ("str", "int", "float", "bool", SplitConfig.__name__) or "[" in str(part)


def _either(problems: list[str]) -> str:
    """What is wrong with one value, which pydantic says for each of the types that it may have."""
    first, *others = problems
    if not others:
        return first
    said = [problem.rpartition(", not ")[0].removeprefix("Input should be ") for problem in others]
    start, _, value = first.rpartition(", not ")
    return f"{start} or {' or '.join(said)}, not {value}"


def _suggest(location: tuple[int | str, ...]) -> str:
    *outer, key = map(str, location)
    section: type[Section] = Config
    for name in outer:
        field = section.model_fields.get(name)
        section = _section_within(field and field.annotation) or section
    known = list(section.model_fields)
    close = difflib.get_close_matches(key, known, n=1)
    if close:
        return f"did you mean {'.'.join([*outer, close[0]])}?"
    return f"known here: {', '.join(known)}"


def _section_within(annotation: Any) -> type[Section] | None:
    """X of annotations such as `X`, `X | None` and `dict[str, str | X]`."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next(filter(None, map(_section_within, get_args(annotation))), None)
