"""Line charts as SVG, with labels on the curves and colours from the page's style sheet."""

import math
from collections.abc import Sequence
from html import escape
from typing import TypeAlias

from npgpt.console.language import number

LEFT, TOP, BOTTOM = 44, 14, 34
Curve: TypeAlias = tuple[str, str, Sequence[tuple[float, float]]]  # label, class, (x, y)
Mark: TypeAlias = tuple[str, str, float, float]  # label, class, x, y: a dot
GAP = 15  # between labels


def line_chart(
    curves: Sequence[Curve],
    x_label: str,
    width: int = 880,
    height: int = 340,
    right: int = 150,
    marks: Sequence[Mark] = (),
) -> str:
    """Return the SVG of the curves and marks, or '' where no curve has a point.

    Sizes are in units of its viewBox; `right` is the space for the labels.
    """
    points = [point for _, _, curve in curves for point in curve]
    if not points:
        return ""
    low_x, high_x = min(x for x, _ in points), max(x for x, _ in points)
    y_ticks = ticks(min(y for _, y in points), max(y for _, y in points))
    low_y, high_y = y_ticks[0], y_ticks[-1]
    bottom, end = height - BOTTOM, width - right

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - low_x) / (high_x - low_x or 1)
        return LEFT + across * (end - LEFT), bottom - (y - low_y) / (high_y - low_y) * (bottom - TOP)

    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(x_label)}">']
    for y in y_ticks:
        _, v = at(low_x, y)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{end}" y1="{v:.1f}" y2="{v:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{v + 4:.1f}" text-anchor="end">{tick(y)}</text>')
    for x in [t for t in ticks(low_x, high_x) if low_x <= t <= high_x]:
        u, _ = at(x, low_y)
        parts.append(
            f'<text class="tick" x="{u:.1f}" y="{bottom + 18}" text-anchor="middle">{tick(x)}</text>'
        )
    parts.append(f'<text class="tick" x="{end}" y="{height - 2}" text-anchor="end">{escape(x_label)}</text>')
    labels = []
    for label, kind, curve in curves:
        path = " ".join(f"{u:.1f},{v:.1f}" for u, v in (at(x, y) for x, y in curve))
        parts.append(f'<polyline class="{kind}" points="{path}"/>')
        if label and curve:
            labels.append((at(*curve[-1]), kind, label))
    for label, kind, x, y in marks:
        u, v = at(x, y)
        parts.append(f'<circle class="{kind}" cx="{u:.1f}" cy="{v:.1f}" r="4"/>')
        if label:
            where = f'x="{u:.1f}" y="{v + 20:.1f}" text-anchor="middle"'
            parts.append(f'<text class="{kind} label" {where}>{escape(label)}</text>')
    placed = -math.inf
    for (u, v), kind, label in sorted(labels, key=lambda one: one[0][1]):
        placed = max(v + 4, placed + GAP)
        parts.append(
            f'<text class="{kind} label" x="{min(u, end) + 8:.1f}" y="{placed:.1f}">{escape(label)}</text>'
        )
    return "\n".join([*parts, "</svg>"])


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Return `about` evenly spaced round numbers, from at most `low` to at least `high`."""
    raw = (high - low or abs(high) or 1) / about
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, max(last, first + 1) + 1)]


def tick(value: float) -> str:
    """Return the label of a tick, with as few digits as it needs.

    >>> tick(1200.0), tick(0.5), tick(0.00025)
    ('1,200', '0.5', '0.00025')
    """
    return number(value, ",.0f" if abs(value) >= 100 or value == int(value) else ".4g")
