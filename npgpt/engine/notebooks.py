"""What objects show of themselves in notebooks: a small table."""

from collections.abc import Mapping
from html import escape


def small_table(title: str, rows: Mapping[str, object]) -> str:
    """Return an HTML table of names and values under a title; whole numbers have separators of thousands.

    It has no colours of its own, so that it is read on dark and on light pages.
    """
    lines = [f'<tr><th colspan="2" style="text-align:left">{escape(title)}</th></tr>']
    for name, value in rows.items():
        whole = isinstance(value, int) and not isinstance(value, bool)
        shown = f"{value:,}" if whole else str(value)
        side = "right" if whole else "left"
        lines.append(
            f'<tr><td style="text-align:left">{escape(name)}</td>'
            f'<td style="text-align:{side};white-space:pre-wrap">{escape(shown)}</td></tr>'
        )
    return '<table style="font-variant-numeric:tabular-nums">' + "".join(lines) + "</table>"
