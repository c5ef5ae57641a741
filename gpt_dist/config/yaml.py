"""Reads and writes YAML 1.2 with ruamel.yaml; no code can run, no alias can fill the memory."""

import json
from io import StringIO
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import SafeRepresenter

_MAX_SIZE = 2**20
"""Of a document in characters: nested aliases could make a few lines of YAML fill the memory."""


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


# ruamel.yaml knows these from YAML 1.1; in 1.2 they are text.
for _name in ("timestamp", "merge", "value"):
    _Constructor.add_constructor(f"tag:yaml.org,2002:{_name}", SafeConstructor.construct_yaml_str)


class _Representer(SafeRepresenter):
    def represent_str(self, data: str) -> ScalarNode:
        """Escape what is not printable, which other styles of ruamel.yaml read back otherwise."""
        style = None if data.isprintable() else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Representer.add_representer(str, _Representer.represent_str)


def read_yaml(text: str) -> Any:
    """Return the one document of a text as JSON's types; raise ValueError saying what is wrong."""
    reader = YAML(typ="safe", pure=True)
    reader.Constructor = _Constructor
    try:
        plain = ""
        for part in json.JSONEncoder(ensure_ascii=False).iterencode(reader.load(text)):
            plain += part
            if len(plain) > _MAX_SIZE:
                raise ValueError(f"longer than {_MAX_SIZE} characters once aliases are replaced")
        return json.loads(plain.encode())
    except MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ValueError(f"{line}{error.problem}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except Exception as error:  # noqa: BLE001 -- a value that its tag forbids can raise anything
        raise ValueError(" ".join(str(error).split())) from None


def write_yaml(value: Any) -> str:
    """Return JSON's types as a text that `read_yaml` reads back the same."""
    writer = YAML(typ="safe", pure=True)
    writer.Representer = _Representer
    writer.default_flow_style = False
    writer.width = 2**30  # ruamel.yaml adds or loses spaces where it breaks a line
    writer.representer.sort_base_mapping_type_on_output = False
    text = StringIO()
    writer.dump(value, text)
    return text.getvalue()
