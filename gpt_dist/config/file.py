"""Read a configuration from a YAML file and `section.key=value` of the command line."""

import difflib
import json
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from gpt_dist.config.resolution import check_combinations
from gpt_dist.config.sections import Config, Section, SplitConfig
from gpt_dist.config.yaml import read_yaml
from gpt_dist.errors import ConfigError


def load_config(path: Path, overrides: list[str]) -> Config:
    """Return the configuration of a YAML file with `section.key=value` overrides applied.

    Everything is checked that does not depend on the launch and the data. Raises ConfigError with
    the dotted name of the key, its value and the remedy.
    """
    values = _read_yaml(path)
    given = [_parse(override) for override in overrides]
    # Only what the file says is removed: of two keys of the command line, neither gives way.
    for (*outer, key), value in given:
        other = _REPLACED.get(".".join([*outer, key]), "").rpartition(".")[2]
        if other and value not in (None, (section := _section(values, outer)).get(key)):
            section.pop(other, None)
    for (*outer, key), value in given:
        _section(values, outer)[key] = value
    if values.get("task") is not None:
        _fill_in_fine_tuning(values)
    try:
        # JSON mode is strict about types (no true for 1) and yet takes lists as tuples.
        config = Config.model_validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        raise ConfigError(_explain(error, path)) from None
    check_combinations(config)
    return config


def _read_yaml(path: Path) -> dict[str, Any]:
    if path.exists() and not (path.is_file() and path.stat().st_size <= 2**20):
        raise ConfigError(f"{path}: not a file, or above 1 MiB; give the YAML file of a run")
    try:
        values = read_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; see configs/ for examples") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not a readable YAML file: {error}") from None
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
    "model.norm_position": "model.family",
    "model.family": "model.norm_position",
    "task.metric": "task.paper",
}
"""For keys on the command line, the key of the file that their new value removes: it says the same
in another way, or is only true of the old value."""


def _parse(override: str) -> tuple[list[str], Any]:
    """Return the parts of the dotted name, two or more, and the value."""
    dotted, equals, text = override.partition("=")
    name = dotted.split(".")
    if not (equals and all(name) and len(name) > 1):
        raise ConfigError(f"{override!r}: expected section.key=value, as in training.max_steps=100")
    try:
        return name, read_yaml(text)
    except ValueError:
        raise ConfigError(f"{dotted}: {text!r} is not a YAML value; quote it") from None


def _section(values: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """Return the section of a dotted name, which is made where it is absent or null."""
    for depth, name in enumerate(names, 1):
        if values.get(name) is None:
            values[name] = {}
        values = values[name]
        if not isinstance(values, dict):
            place = ".".join(names[:depth])
            raise ConfigError(f"{place}: expected keys and values, found {values!r}")
    return values


_FINE_TUNING_DEFAULTS = {
    "run.directory": "runs/finetune",
    "optimizer.learning_rate": 6.25e-5,
    "schedule.warmup_fraction": 0.002,
    "schedule.shape": "linear",
    "training.epochs": 3,
    "training.global_batch_size": 32,
}
"""Defaults of a configuration with a task (Radford et al. 2018, section 4.1)."""


def _fill_in_fine_tuning(values: dict[str, Any]) -> None:
    """Fill in the paper's fine-tuning values of keys that are left out or null."""
    for name, value in _FINE_TUNING_DEFAULTS.items():
        *outer, key = name.split(".")
        section, other = _section(values, outer), _REPLACED.get(name, name).rpartition(".")[2]
        if section.get(key) is None and section.get(other) is None:
            section.pop(other, None)
            section[key] = value


def _explain(error: ValidationError, path: Path) -> str:
    """Return one line for each value that pydantic found wrong, whatever types it may have."""
    reasons: dict[str, str] = {}
    endings: dict[str, str] = {}
    for problem in error.errors():
        location = tuple(part for part in problem["loc"] if not _is_type(part))
        name, value, ending = ".".join(map(str, location)), problem["input"], ""
        if problem["type"] == "extra_forbidden":
            reason = f"unknown key; {_suggest(location)}"
        elif problem["type"] == "missing":
            reason = "not given, and there is no default"
        elif problem["type"] in ("value_error", "json_invalid"):
            reason = str(problem["ctx"]["error"])
        else:
            shown = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
            reason, ending = problem["msg"], f", not {shown}"
            if problem["type"] == "string_type" and isinstance(value, int | float):
                ending += "; quote it"
        if name in reasons:
            reason = f"{reasons[name]} or {reason.removeprefix('Input should be ')}"
        reasons[name] = reason
        endings.setdefault(name, ending)
    # If a value may have several types, the one of which only a key is wrong was meant.
    outer = {name for name in reasons if any(other.startswith(f"{name}.") for other in reasons)}
    return "\n".join(
        f"{name or path}: {reasons[name]}{endings[name]}" for name in reasons if name not in outer
    )


def _is_type(part: int | str) -> bool:
    """Return whether a part of pydantic's location names a type that it tried, not a key."""
    return part in ("str", "int", "float", "bool", SplitConfig.__name__) or "[" in str(part)


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
    """Return X from an annotation such as `X`, `X | None` or `dict[str, str | X]`."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next(filter(None, map(_section_within, get_args(annotation))), None)
