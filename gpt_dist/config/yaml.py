"""YAML 1.2, read and written with ruamel.yaml: no code can run, no alias can fill the memory."""

import json
import re
from io import StringIO
from typing import Any, ClassVar

from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import SafeRepresenter
from ruamel.yaml.resolver import VersionedResolver

_MAX_SIZE = 2**20
"""Most characters and values of a document, with the aliases replaced, which may be nested."""
_MAX_DEPTH = 100


class _Constructor(SafeConstructor):
    def flatten_mapping(self, node: Any) -> None:
        """Leave `<<` a key like any other: YAML 1.2 has no merge keys."""

    def check_mapping_key(
        self, _node: Any, key_node: Any, mapping: Any, key: Any, _value: Any
    ) -> bool:
        """Refuse a key given twice, without showing its value, which may be huge."""
        if key in mapping:
            raise ConstructorError(
                None, None, f"the key {key!r} is given twice", key_node.start_mark
            )
        return True


class _Resolver(VersionedResolver):
    """Finds the type of plain text by the core schema alone: ruamel.yaml keeps much of YAML 1.1."""

    processing_version = (1, 2)
    """Holds whatever a `%YAML` directive says."""
    versioned_resolver: ClassVar[dict[str | None, list[tuple[str, re.Pattern[str]]]]] = {
        None: [
            (f"tag:yaml.org,2002:{name}", re.compile(pattern))
            for name, pattern in (
                ("null", r"(null|Null|NULL|~|)\Z"),
                ("bool", r"(true|True|TRUE|false|False|FALSE)\Z"),
                ("int", r"([-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z"),
                ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z"),
                ("float", r"([-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))\Z"),
            )
        ]
    }


class _Representer(SafeRepresenter):
    def represent_str(self, data: str) -> ScalarNode:
        """Escape what is not printable, which other styles of ruamel.yaml read back otherwise."""
        style = None if data.isprintable() else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Representer.add_representer(str, _Representer.represent_str)


def read_yaml(text: str) -> Any:
    """Return the one document of a text as JSON's types; raise ValueError saying what is wrong."""
    reader = YAML(typ="safe", pure=True)
    reader.Constructor, reader.Resolver = _Constructor, _Resolver
    try:
        value = reader.load(text)
        _check_extent(value)
        plain = json.dumps(value, ensure_ascii=False)
        # As in JSON, an escaped character may be a pair of surrogates.
        return json.loads(plain.encode("utf-16", "surrogatepass").decode("utf-16"))
    except MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ValueError(f"{line}{error.problem}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except Exception as error:  # noqa: BLE001 -- a value that its tag forbids can raise anything
        raise ValueError(" ".join(str(error).split())) from None


def _check_extent(value: Any) -> None:
    """Raise ValueError where a value, with its aliases replaced, is too large or nested deeply."""
    size, left = 0, [(value, 0)]
    while left:
        item, depth = left.pop()
        if isinstance(item, dict):
            inner = [*item, *item.values()]
        else:
            inner = item if isinstance(item, list) else []
        size += len(inner) + (len(item) if isinstance(item, str) else 0)
        if size > _MAX_SIZE:
            raise ValueError(f"longer than {_MAX_SIZE} characters once aliases are replaced")
        if depth > _MAX_DEPTH:
            raise ValueError(f"nested more than {_MAX_DEPTH} deep")
        left += [(one, depth + 1) for one in inner]


def write_yaml(value: Any) -> str:
    """Return JSON's types as a text that `read_yaml` reads back the same."""
    writer = YAML(typ="safe", pure=True)
    writer.Representer, writer.Resolver = _Representer, _Resolver
    writer.default_flow_style = False
    writer.width = 2**30  # ruamel.yaml adds or loses spaces where it breaks a line
    writer.representer.sort_base_mapping_type_on_output = False
    text = StringIO()
    writer.dump(value, text)
    return text.getvalue()
