"""Draw charts as inline SVG."""

import math
from collections.abc import Sequence

from data_prep.page.html import Html, text

_WIDTH = 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 18, 18, 36
_PLOT_WIDTH = _WIDTH - _LEFT - _RIGHT
_PLOT_HEIGHT = 170
_LABEL_CHARACTERS = 40

Point = tuple[float, float]


def short(number: float) -> str:
    """Return a number in few characters, such as 1.5 M."""
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(number) >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def bars(title: str, rows: Sequence[tuple[str, float, str]]) -> Html:
    """Draw a horizontal bar for each label, value and note."""
    largest = max((value for _, value, _ in rows), default=0) or 1
    parts = []
    for number, (label, value, note) in enumerate(rows):
        top = number * 32
        width = max(1.0 if value else 0.0, _WIDTH * value / largest)
        parts.append(
            f'<text x="0" y="{top + 11}">{text(label, _LABEL_CHARACTERS)}</text>'
            f'<text class="dim" x="{_WIDTH}" y="{top + 11}" text-anchor="end">'
            f"{text(note, _LABEL_CHARACTERS)}</text>"
            f'<rect class="back" x="0" y="{top + 15}" width="{_WIDTH}" height="9"/>'
            f'<rect class="bar" x="0" y="{top + 15}" width="{width:.1f}" height="9"/>'
        )
    return _figure(title, max(1, 32 * len(rows)), parts)


def histogram(title: str, counts: Sequence[int], edges: Sequence[float], x_label: str) -> Html:
    """Draw a bar for each count between two neighbours of `edges`, which are spaced evenly."""
    largest = max(counts, default=0) or 1
    step = _PLOT_WIDTH / max(1, len(counts))
    parts = _grid([(_height(share), short(share * largest)) for share in (0.5, 1.0)])
    for number, count in enumerate(counts):
        height = _PLOT_HEIGHT * count / largest
        label = f"{short(edges[number])} to {short(edges[number + 1])}: {count:,}"
        parts.append(
            f'<rect class="bar" x="{_LEFT + number * step + 0.5:.1f}" '
            f'y="{_TOP + _PLOT_HEIGHT - height:.1f}" width="{max(1, step - 1):.1f}" '
            f'height="{height:.1f}"><title>{label}</title></rect>'
        )
    for number in range(0, len(edges), 2 * -(-len(edges) // 14)):
        parts.append(_tick(_LEFT + number * step, short(edges[number])))
    return _figure(title, _TOP + _PLOT_HEIGHT + _BOTTOM, [*parts, _x_label(x_label)])


def log_curve(title: str, points: Sequence[Point], x_label: str) -> Html:
    """Draw a curve of positive points with logarithmic axes from 1."""
    decades = [max(1, math.ceil(math.log10(max(one)))) for one in zip(*points, strict=True)]
    parts = _grid([(_height(i / decades[1]), short(10**i)) for i in range(decades[1] + 1)])
    parts += [
        _tick(_LEFT + _PLOT_WIDTH * i / decades[0], short(10**i)) for i in range(decades[0] + 1)
    ]
    places = " ".join(
        f"{_LEFT + _PLOT_WIDTH * math.log10(x) / decades[0]:.1f},"
        f"{_height(math.log10(y) / decades[1]):.1f}"
        for x, y in points
    )
    parts.append(f'<polyline class="curve" points="{places}"/>')
    return _figure(title, _TOP + _PLOT_HEIGHT + _BOTTOM, [*parts, _x_label(x_label)])


def _height(share: float) -> float:
    return _TOP + _PLOT_HEIGHT * (1 - share)


def _grid(lines: Sequence[tuple[float, str]]) -> list[str]:
    return [
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="dim" x="{_LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'
        for y, label in lines
    ]


def _tick(x: float, label: str) -> str:
    y = _TOP + _PLOT_HEIGHT + 13
    return f'<text class="dim" x="{x:.1f}" y="{y}" text-anchor="middle">{label}</text>'


def _x_label(label: str) -> str:
    return f'<text class="dim" x="{_LEFT}" y="{_TOP + _PLOT_HEIGHT + 31}">{text(label)}</text>'


def _figure(title: str, height: int, parts: Sequence[str]) -> Html:
    return Html(
        f'<figure><svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{text(title)}">'
        f"{''.join(parts)}</svg></figure>\n"
    )
