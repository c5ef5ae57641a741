"""Keep documents on the disk between the worker that unpacks them and those that clean them."""

import json
from collections.abc import Iterator
from pathlib import Path

from data_prep.reading.documents import Document, LeftOut
from gpt_dist.files.folders import publish


def raw_file(prefix: Path) -> Path:
    """Return the file of one unpacked part, before it is cleaned."""
    return prefix.with_suffix(".raw")


def write_raw(prefix: Path, items: tuple[Document | LeftOut, ...]) -> None:
    """Write documents as a line of JSON that describes them, and their contents after it."""
    head: list[tuple[str | bool | int, ...]] = []
    contents = []
    for item in items:
        if isinstance(item, LeftOut):
            head.append((item.name, item.reason))
        else:
            content = item.content
            data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
            contents.append(data)
            head.append((item.name, item.form, isinstance(content, str), len(data), item.encoding))
    partial = prefix.with_suffix(".unpacking")
    with partial.open("wb") as output:
        output.write(json.dumps(head).encode() + b"\n")
        output.writelines(contents)
    publish(partial, raw_file(prefix), synced=False)


def read_raw(prefix: Path) -> Iterator[Document | LeftOut]:
    """Yield the documents of one part."""
    with raw_file(prefix).open("rb") as stream:
        for name, form, *kind in json.loads(stream.readline()):
            if not kind:
                yield LeftOut(name, form)
            else:
                is_text, size, encoding = kind
                data = stream.read(size)
                content = data.decode("utf-8", "surrogatepass") if is_text else data
                yield Document(name, content, form, encoding)
