"""A chart as PNG, for where no browser is: the same curves and axes as `charts.py` draws as SVG."""

from io import BytesIO
from itertools import pairwise

from PIL import Image, ImageDraw, ImageFont

from armature.cli.report.axes import Axis, linear, logarithmic, written
from armature.cli.report.charts import Chart, Line

_WIDTH, _HEIGHT = 1200, 760
_LEFT, _RIGHT, _TOP, _BOTTOM = 110, 40, 70, 80
_INK, _GREY, _GRID = "#1d2430", "#556070", "#e6e9ee"
_DASH = 14
_Place = tuple[float, float]


def png(one: Chart) -> bytes:
    """The picture's file, with a key to its lines."""
    image = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    _Picture(ImageDraw.Draw(image), one).draw()
    file = BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


class _Picture:
    def __init__(self, pen: ImageDraw.ImageDraw, one: Chart) -> None:
        xs = [x for line in one.lines for x, _ in line.points]
        ys = [y for line in one.lines for _, y in line.points]
        self._pen = pen
        self._chart = one
        self._x_axis = logarithmic(xs) if one.is_log_x else Axis(0.0, max(xs, default=1.0) or 1.0)
        self._y_axis = linear(ys) if one.y_high is None else Axis(0.0, one.y_high)

    def draw(self) -> None:
        self._frame()
        for line in self._chart.lines:
            self._curve(line)
        self._key()

    def _frame(self) -> None:
        bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
        for tick in self._y_axis.ticks:
            _, y = self._at(0.0, tick)
            self._pen.line([(_LEFT, y), (right, y)], _GRID, 2)
            self._text((_LEFT - 12, y), written(tick), "rm")
        for tick in self._x_axis.ticks:
            x, _ = self._at(tick, 0.0)
            self._pen.line([(x, _TOP), (x, bottom)], _GRID, 2)
            self._text((x, bottom + 10), written(tick), "ma")
        self._text((_LEFT, 22), f"{self._chart.title}: {self._chart.y_label}", "la", 24, _INK)
        self._text(((_LEFT + right) / 2, _HEIGHT - 14), self._chart.x_label, "ms")

    def _curve(self, line: Line) -> None:
        places = [self._at(x, y) for x, y in line.points]
        if line.is_dashed:
            for dash in _dashes(places):
                self._pen.line(dash, line.color, 4)
        elif len(places) > 1:
            self._pen.line(places, line.color, 4, joint="curve")
        for x, y in places:
            self._pen.ellipse((x - 5, y - 5, x + 5, y + 5), line.color)

    def _key(self) -> None:
        """At the right, above the curves: frontiers fall towards it."""
        for row, line in enumerate([line for line in self._chart.lines if line.points]):
            y = _TOP + 20 + 28 * row
            self._text((_WIDTH - _RIGHT - 80, y), line.name, "rm", color=_INK)
            for dash in _dashes([(_WIDTH - _RIGHT - 70, y), (_WIDTH - _RIGHT - 10, y)], line.is_dashed):
                self._pen.line(dash, line.color, 4)

    def _at(self, x: float, y: float) -> _Place:
        return (
            _LEFT + self._x_axis.at(x) * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - self._y_axis.at(y) * (_HEIGHT - _TOP - _BOTTOM),
        )

    def _text(self, place: _Place, text: str, anchor: str, size: int = 20, color: str = _GREY) -> None:
        self._pen.text(place, text, color, ImageFont.load_default(size), anchor)


def _dashes(places: list[_Place], is_dashed: bool = True) -> list[list[_Place]]:
    """The line through places in pieces, every other one left out."""
    if not is_dashed:
        return [places]
    pieces: list[list[_Place]] = []
    gone, is_on = 0.0, True
    for (x, y), (to_x, to_y) in pairwise(places):
        length = ((to_x - x) ** 2 + (to_y - y) ** 2) ** 0.5
        at = 0.0
        while at < length:
            step = min(_DASH - gone, length - at)
            if is_on:
                ends = [(x + (to_x - x) * (at + d) / length, y + (to_y - y) * (at + d) / length) for d in (0.0, step)]
                pieces.append(ends)
            at, gone = at + step, gone + step
            if gone >= _DASH:
                gone, is_on = 0.0, not is_on
    return pieces
