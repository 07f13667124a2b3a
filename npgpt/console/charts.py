"""Line charts in SVG, with labels on the curves; sizes and colours are those of the page's STYLE."""

import math
from collections.abc import Sequence
from html import escape
from typing import TypeAlias

from npgpt.console.language import number

LEFT, TOP, BOTTOM = 44, 14, 34
Curve: TypeAlias = tuple[str, str, Sequence[tuple[float, float]]]  # label, class, (x, y)
Mark: TypeAlias = tuple[str, str, float, float]  # label, class, x, y: a dot
GAP = 15  # between labels
STYLE = """
.chart { position: relative; } svg { display: block; width: 100%; overflow: visible; }
svg.curves { position: absolute; top: 0; left: 0; }
svg text { font-size: 13px; fill: var(--ink); } svg .tick { fill: var(--soft); font-size: 12px; }
svg .grid { stroke: var(--line); }
polyline { fill: none; stroke-width: 2; stroke-linejoin: round; vector-effect: non-scaling-stroke; }
@media (max-width: 480px) { svg .tick.odd { display: none; } }
"""


def line_chart(
    curves: Sequence[Curve],
    x_label: str,
    height: int = 340,
    right: int = 120,
    marks: Sequence[Mark] = (),
) -> str:
    """Return the HTML of the curves and marks, or '' where no curve has a point.

    It is as wide as its place. `height`, and `right`, the space for the labels, are in pixels. The curves
    alone are stretched to the width, in an SVG of their own; so text has its size on every screen.
    """
    points = [point for _, _, curve in curves for point in curve]
    if not points:
        return ""
    low_x, high_x = min(x for x, _ in points), max(x for x, _ in points)
    y_ticks = ticks(min(y for _, y in points), max(y for _, y in points))
    low_y, high_y = y_ticks[0], y_ticks[-1]
    bottom = height - BOTTOM

    def at(x: float, y: float) -> tuple[float, float]:
        """Return percent of the width, and pixels from the top."""
        across = (x - low_x) / (high_x - low_x or 1)
        return 100 * across, bottom - (y - low_y) / (high_y - low_y) * (bottom - TOP)

    parts = [f'<svg height="{height}" role="img" aria-label="{escape(x_label)}">']
    for y in y_ticks:
        _, v = at(low_x, y)
        parts.append(f'<line class="grid" x1="0" x2="100%" y1="{v:.1f}" y2="{v:.1f}"/>')
        parts.append(f'<text class="tick" x="-8" y="{v + 4:.1f}" text-anchor="end">{tick(y)}</text>')
    for n, x in enumerate([t for t in ticks(low_x, high_x) if low_x <= t <= high_x]):
        u, _ = at(x, low_y)
        kind, where = "tick odd" if n % 2 else "tick", f'x="{u:.2f}%" y="{bottom + 18}"'
        parts.append(f'<text class="{kind}" {where} text-anchor="middle">{tick(x)}</text>')
    parts.append(f'<text class="tick" x="100%" y="{height - 2}" text-anchor="end">{escape(x_label)}</text>')
    lines, labels = [], []
    for label, kind, curve in curves:
        path = " ".join(f"{10 * u:.1f},{v:.1f}" for u, v in (at(x, y) for x, y in curve))
        lines.append(f'<polyline class="{kind}" points="{path}"/>')
        if label and curve:
            labels.append((at(*curve[-1]), kind, label))
    for label, kind, x, y in marks:
        u, v = at(x, y)
        parts.append(f'<circle class="{kind}" cx="{u:.2f}%" cy="{v:.1f}" r="4"/>')
        if label:
            where = f'x="{u:.2f}%" y="{v + 20:.1f}" text-anchor="middle"'
            parts.append(f'<text class="{kind} label" {where}>{escape(label)}</text>')
    placed = -math.inf
    for (u, v), kind, label in sorted(labels, key=lambda one: one[0][1]):
        placed = max(v + 4, placed + GAP)
        where = f'x="{u:.2f}%" dx="8" y="{placed:.1f}"'
        parts.append(f'<text class="{kind} label" {where}>{escape(label)}</text>')
    box = f'viewBox="0 0 1000 {height}" preserveAspectRatio="none" aria-hidden="true"'
    stretched = f'<svg class="curves" height="{height}" {box}>'
    begin = f'<div class="chart" style="margin: 4px {right}px 0 {LEFT}px">'
    return "\n".join([begin, stretched, *lines, "</svg>", *parts, "</svg>", "</div>"])


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
