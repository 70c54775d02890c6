"""Pictures as SVG text."""

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from armature.cli.report.axes import Axis, linear, logarithmic, written
from armature.cli.report.figures import Load, Points

# Told apart by people who see few colours, too (Okabe and Ito, 2008), the dark ones first.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9", "#7f3fbf", "#444444", "#e69f00")
_WIDTH, _HEIGHT = 560, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 24, 34, 42


class Line(NamedTuple):
    """One curve."""

    name: str
    points: Points
    color: str
    is_dashed: bool = False


class Chart(NamedTuple):
    """Curves over a common axis."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    is_log_x: bool = False
    y_high: float | None = None
    """Where the axis ends; None: above the largest value."""


def chart(one: Chart) -> str:
    """The picture."""
    xs = [x for line in one.lines for x, _ in line.points]
    ys = [y for line in one.lines for _, y in line.points]
    x_axis = logarithmic(xs) if one.is_log_x else Axis(0.0, max(xs, default=1.0) or 1.0)
    y_axis = linear(ys) if one.y_high is None else Axis(0.0, one.y_high)
    parts = [_frame(one, x_axis, y_axis)]
    parts += [_curve(line, x_axis, y_axis) for line in one.lines if line.points]
    return _svg(one.title, _HEIGHT, parts)


def heat(title: str, load: Load) -> str:
    """How busy each worker was, in spans of time: white is idle."""
    row_height = max(6, min(18, 220 // max(len(load.rows), 1)))
    height = _TOP + row_height * len(load.rows) + _BOTTOM
    columns = max(len(load.rows[0]), 1)
    width = (_WIDTH - _LEFT - _RIGHT) / columns
    parts: list[str] = []
    for i, (name, row) in enumerate(zip(load.names, load.rows, strict=True)):
        y = _TOP + i * row_height
        if row_height >= 10 or not i % 3:
            parts.append(_text(_LEFT - 6, y + row_height / 2 + 3.5, name, anchor="end"))
        for j, value in enumerate(row):
            if value >= 0.005:
                box = f'x="{_LEFT + j * width:.1f}" y="{y}" width="{width + 0.3:.1f}" height="{row_height - 1}"'
                parts.append(f'<rect {box} fill="{_shade(value)}"/>')
    end_y = _TOP + row_height * len(load.rows)
    x_axis = Axis(0.0, columns * load.width_s)
    parts += [_text(_x(x_axis, tick), end_y + 14, written(tick)) for tick in x_axis.ticks]
    parts.append(_text(_LEFT + (_WIDTH - _LEFT - _RIGHT) / 2, end_y + 32, "time, s"))
    return _svg(title, height, parts)


def _frame(one: Chart, x_axis: Axis, y_axis: Axis) -> str:
    parts: list[str] = []
    bottom = _HEIGHT - _BOTTOM
    for tick in y_axis.ticks:
        y = _y(y_axis, tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(_LEFT - 6, y + 3.5, written(tick), anchor="end"))
    for tick in x_axis.ticks:
        x = _x(x_axis, tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{bottom}"/>')
        parts.append(_text(x, bottom + 14, written(tick)))
    parts.append(_text(_LEFT + (_WIDTH - _LEFT - _RIGHT) / 2, _HEIGHT - 8, one.x_label))
    parts.append(f'<text transform="translate(13 {(_TOP + bottom) / 2}) rotate(-90)">{escape(one.y_label)}</text>')
    return "".join(parts)


def _curve(line: Line, x_axis: Axis, y_axis: Axis) -> str:
    path = " ".join([f"{_x(x_axis, x):.1f},{_y(y_axis, y):.1f}" for x, y in line.points])
    dashes = ' stroke-dasharray="4 3"' if line.is_dashed else ""
    name = f"<title>{escape(line.name)}</title>"
    return f'<polyline class="curve" points="{path}" stroke="{line.color}"{dashes}>{name}</polyline>'


def _svg(title: str, height: int, parts: Sequence[str]) -> str:
    head = f'<text class="title" x="{_LEFT}" y="18">{escape(title)}</text>'
    return f'<svg viewBox="0 0 {_WIDTH} {height}" role="img">{head}{"".join(parts)}</svg>'


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" style="text-anchor:{anchor}">{escape(text)}</text>'


def _x(axis: Axis, value: float) -> float:
    return _LEFT + axis.at(value) * (_WIDTH - _LEFT - _RIGHT)


def _y(axis: Axis, value: float) -> float:
    return _HEIGHT - _BOTTOM - axis.at(value) * (_HEIGHT - _TOP - _BOTTOM)


def _shade(value: float) -> str:
    """From white to dark blue."""
    light = 1.0 - min(max(value, 0.0), 1.0)
    red, green, blue = (round(dark + (248 - dark) * light) for dark in (8, 72, 140))
    return f"#{red:02x}{green:02x}{blue:02x}"
