"""Write HTML whose size is bounded: text is escaped and cut, tables have a limit of rows."""

from collections.abc import Iterable, Sequence
from html import escape

CUT = 160
"""Number of characters at which names and other short texts are cut."""
ROWS = 30

# Besides printable characters. Others are no HTML, or change the direction of what is around them.
_SHOWN = frozenset("\n\t\u00a0\u2009\u202f\u3000\u200c\u200d")

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --dim: #5b6470; --page: #ffffff;
  --line: #d8dde3; --shade: #f2f4f7; --bar: #2f6fb3; --warn: #a33b00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --dim: #9aa4b0; --page: #14171b;
  --line: #333a43; --shade: #1d2228; --bar: #6aa9e9; --warn: #ff9d5c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1rem; background: var(--page);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; } h2 { font-size: 1.15rem; margin: 2.2rem 0 0.4rem;
  border-bottom: 1px solid var(--line); padding-bottom: 0.2rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 0.3rem; } p { margin: 0.4rem 0; max-width: 46rem; }
.dim { color: var(--dim); font-size: 0.9rem; } .warn { color: var(--warn); }
.wide { overflow-x: auto; margin: 0.6rem 0; }
table { border-collapse: collapse; font-size: 0.9rem; }
th, td { text-align: left; vertical-align: top; padding: 0.25rem 0.8rem 0.25rem 0;
  border-bottom: 1px solid var(--line); min-width: 3.5rem;
  overflow-wrap: normal; }
.names { display: block; overflow-wrap: anywhere; min-width: 11rem; }
th { font-weight: 600; color: var(--dim); } td.number, th.number { text-align: right;
  font-variant-numeric: tabular-nums; white-space: nowrap; }
pre { background: var(--shade); padding: 0.7rem; border-radius: 6px; white-space: pre-wrap;
  font: 0.85rem/1.45 ui-monospace, monospace; margin: 0.3rem 0 1rem; }
code { background: var(--shade); padding: 0 0.25em; border-radius: 3px; white-space: pre-wrap; }
figure { margin: 0.6rem 0; } svg { display: block; width: 100%; max-width: 36rem; height: auto; }
svg text { fill: var(--ink); font: 12px system-ui, sans-serif; } svg .dim { fill: var(--dim);
  font-size: 12px; }
svg .bar { fill: var(--bar); } svg .grid { stroke: var(--line); stroke-width: 1; }
svg .back { fill: var(--shade); }
svg .curve { fill: none; stroke: var(--bar); stroke-width: 2; stroke-linejoin: round; }
nav { font-size: 0.9rem; } nav a { margin-right: 0.9em; white-space: nowrap; color: var(--bar); }
"""


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def text(content: object, cut: int = CUT) -> Html:
    """Return any text, cut, as HTML that shows it."""
    if isinstance(content, Html):
        return content
    plain = str(content)
    shown = plain if len(plain) <= cut else plain[: cut - 1] + "…"
    visible = "".join(one if one.isprintable() or one in _SHOWN else "\ufffd" for one in shown)
    return Html(escape(visible))


def code(content: str, cut: int = CUT) -> Html:
    """Return a text in a fixed font, with its spaces."""
    return Html(f"<code>{text(content, cut)}</code>")


def paragraph(content: str, kind: str = "") -> Html:
    """Return a paragraph; `kind` is "dim", "warn" or nothing."""
    return Html(
        f'<p class="{kind}">{text(content, 1000)}</p>' if kind else f"<p>{text(content)}</p>"
    )


def names(some: Sequence[str], total: int | None = None, count: int = 3) -> Html:
    """Return the first names, and the number of the others."""
    more = (len(some) if total is None else total) - min(count, len(some))
    shown: list[str] = [text(name) for name in some[:count]]
    shown += [f'<span class="dim">and {more:,} more</span>'] * (more > 0)
    return Html(f'<span class="names">{"<br>".join(shown)}</span>')


def table(headers: Sequence[str], rows: Sequence[Sequence[object]], limit: int = ROWS) -> Html:
    """Return a table of the first rows, with the number of the others.

    A column whose header begins with `#` holds numbers.
    """
    numeric = [header.startswith("#") for header in headers]
    more = len(rows) - limit
    body = [_row("td", row, numeric) for row in rows[:limit]]
    if more > 0:
        body.append(f'<tr><td class="dim" colspan="{len(headers)}">and {more:,} more</td></tr>')
    head = _row("th", [header.removeprefix("#") for header in headers], numeric)
    return Html(f'<div class="wide"><table>{head}{"".join(body)}</table></div>\n')


def section(title: str, *parts: Html) -> tuple[str, Html]:
    """Return a section with its title; without parts, it is left out of the page."""
    anchor = title.lower().replace(" ", "-")
    body = "".join(parts)
    content = f'<section id="{anchor}"><h2>{text(title)}</h2>\n{body}</section>\n' if body else ""
    return title, Html(content)


def page(title: str, sections: Iterable[tuple[str, Html]]) -> str:
    """Return the whole page, which needs nothing else."""
    present = [(name, content) for name, content in sections if content]
    links = "".join(f'<a href="#{one.lower().replace(" ", "-")}">{one}</a> ' for one, _ in present)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{_STYLE}</style></head>\n<body><h1>{text(title)}</h1>"
        f"<nav>{links}</nav>\n{''.join(content for _, content in present)}</body></html>\n"
    )


def _row(tag: str, cells: Sequence[object], numeric: Sequence[bool]) -> str:
    parts = (
        f'<{tag} class="number">{text(cell)}</{tag}>' if number else f"<{tag}>{text(cell)}</{tag}>"
        for cell, number in zip(cells, numeric, strict=True)
    )
    return f"<tr>{''.join(parts)}</tr>"
