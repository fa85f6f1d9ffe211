"""Draws bar charts as SVG, for light and dark pages."""

import io
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_INK, _FAINT, _OURS, _THEIRS = "#1f2328", "#59636e", "#0969da", "#a8b3bf"
_DARK = {_INK: "#f0f6fc", _FAINT: "#9198a1", _OURS: "#4493f8", _THEIRS: "#656c76"}
_FONT = "ui-sans-serif, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text is not converted to paths
    "svg.hashsalt": "chatrpc",  # makes files of equal figures equal
    "font.size": 11,
    "text.color": _INK,
}
_ROW_INCHES, _PANEL_INCHES, _LABEL_INCHES, _HEAD_INCHES = 0.30, 2.1, 2.2, 0.62


@dataclass(frozen=True, slots=True)
class Panel:
    """A figure of every server, as a column of bars. Servers without the figure have no bar."""

    title: str
    subtitle: str
    values: Mapping[str, float]


def bars(
    panels: Sequence[Panel], servers: Mapping[str, str], ours: Collection[str], path: Path
) -> None:
    """Write the panels side by side. Each server is a row, and each bar has its value.

    Args:
        servers: Titles by name, from top to bottom.
        ours: The names of the servers in colour.
    """
    height = _ROW_INCHES * (len(servers) + 0.3) + _HEAD_INCHES
    width = _PANEL_INCHES * len(panels) + _LABEL_INCHES
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height))
        figure.subplots_adjust(
            left=_LABEL_INCHES / width,
            right=0.995,
            top=1 - _HEAD_INCHES / height,
            bottom=0.0,
            wspace=0.08,
        )
        grid = figure.subplots(1, len(panels), squeeze=False)[0]
        for index, (axes, panel) in enumerate(zip(grid, panels, strict=True)):
            _draw(axes, panel, servers, ours, has_names=index == 0)
        path.write_text(_themed(_svg(figure)))


def _draw(
    axes: Axes,
    panel: Panel,
    servers: Mapping[str, str],
    ours: Collection[str],
    *,
    has_names: bool,
) -> None:
    axes.set_axis_off()
    largest = max(panel.values.values(), default=1.0) or 1.0
    axes.set_xlim(0, largest * 1.5)  # room for the value of the longest bar
    axes.set_ylim(len(servers) - 0.2, -0.6)
    head: dict[str, Any] = {
        "xycoords": "axes fraction",
        "textcoords": "offset points",
        "va": "bottom",
    }
    axes.annotate(panel.title, (0, 1), (0, 20), weight="bold", size=12, **head)
    axes.annotate(panel.subtitle, (0, 1), (0, 5), size=10, color=_FAINT, **head)
    for row, (name, title) in enumerate(servers.items()):
        weight = "bold" if name in ours else "normal"
        if has_names:
            axes.annotate(
                title, (0, row), (-8, 0), xycoords="data", textcoords="offset points",
                ha="right", va="center", weight=weight,
            )  # fmt: skip
        value = panel.values.get(name)
        if value is not None:
            axes.barh(row, value, height=0.66, color=_OURS if name in ours else _THEIRS)
        axes.annotate(
            "no figure" if value is None else short(value),
            (value or 0, row), (5, 0), xycoords="data", textcoords="offset points",
            va="center", weight=weight, color=_FAINT if value is None else _INK,
        )  # fmt: skip


def short(value: float) -> str:
    """Return a number with three significant digits, since results on a shared machine vary."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return text.getvalue()


def _themed(svg: str) -> str:
    """Return the chart with the reader's own font, and with other colours on a dark page."""
    rules = "".join(
        f'[style*="fill: {light}"]{{fill:{dark}!important}}' for light, dark in _DARK.items()
    )
    style = f"<style>@media(prefers-color-scheme:dark){{{rules}}}</style>"
    svg = re.sub(r"font-family: [^;]*;", f"font-family: {_FONT};", svg)
    return re.sub(r"(<svg [^>]*>)", lambda match: match[1] + style, svg, count=1)
