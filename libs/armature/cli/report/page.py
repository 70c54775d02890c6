"""The report itself: what was run, the numbers side by side, the pictures."""

from collections.abc import Callable, Mapping, Sequence
from html import escape

from armature.cli.report import figures
from armature.cli.report.charts import COLORS, Chart, Line, chart, heat
from armature.cli.report.figures import Points, Times, times_of
from armature.sim.simulation import Run

_STYLE = """
body{font:14px/1.45 system-ui,sans-serif;color:#1d2430;background:#f5f6f8;margin:0 auto;max-width:1320px;padding:24px}
h1{font-size:22px;margin:0 0 4px}h2{font-size:16px;margin:28px 0 10px}p{margin:0 0 14px;color:#556}
table{border-collapse:collapse;background:#fff;border:1px solid #dfe3e8;width:100%}
th,td{padding:5px 10px;text-align:right;border-bottom:1px solid #eceff3;font-variant-numeric:tabular-nums}
th{color:#556;font-weight:600}th:first-child,td:first-child{text-align:left}
.pictures{display:grid;grid-template-columns:repeat(auto-fit,minmax(380px,1fr));gap:14px}
svg{background:#fff;border:1px solid #dfe3e8;width:100%;height:auto;display:block}
svg text{font:11px system-ui,sans-serif;fill:#556;text-anchor:middle}
svg .title{font-size:13px;font-weight:600;fill:#1d2430;text-anchor:start}
svg .grid{stroke:#e6e9ee;stroke-width:1}.curve{fill:none;stroke-width:1.7;stroke-linejoin:round}
.key{display:inline-block;margin:0 18px 8px 0}.key i{display:inline-block;width:22px;height:3px;margin:0 6px 4px 0}
"""


class _Side:
    """One policy's run, and its colour."""

    def __init__(self, name: str, run: Run, color: str) -> None:
        self.name = name
        self.run = run
        self.color = color
        self.times = times_of(run)


def report(about: str, header: Sequence[str], rows: Mapping[str, Sequence[str]], runs: Mapping[str, Run]) -> str:
    """The page. `header` and `rows` are the table's, `runs` has one for each row."""
    sides = [_Side(name, run, COLORS[i % len(COLORS)]) for i, (name, run) in enumerate(runs.items())]
    key = [(side.name, side.color) for side in sides]
    parts = [
        _head("Simulation", about),
        _table(header, rows),
        "<h2>Distributions</h2>",
        _key(key),
        _grid([chart(one) for one in _distributions(sides)]),
        "<h2>Over time</h2><p>By arrival; solid: median, dashed: 99th percentile.</p>",
        _key(key),
        _grid([chart(one) for one in _courses(sides)]),
        "<h2>Load of workers</h2><p>Share of the time spent computing: white is idle, dark blue is all of it.</p>",
        _grid([heat(side.name, figures.load(side.run)) for side in sides if side.run.workers]),
        "</html>\n",
    ]
    return "\n".join(parts)


def chart_page(
    title: str, about: str, header: Sequence[str], rows: Mapping[str, Sequence[str]], charts: Sequence[Chart]
) -> str:
    """A page of one table and pictures whose lines have the same names and colours in all of them."""
    key = [(line.name, line.color) for line in charts[0].lines] if charts else []
    parts = [_head(title, about), _table(header, rows), _key(key), _grid([chart(one) for one in charts]), "</html>\n"]
    return "\n".join(parts)


def _head(title: str, about: str) -> str:
    name = f"armature: {title.lower()}"
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(name)}</title><style>{_STYLE}</style>"
    return f"{head}\n<h1>{escape(title)}</h1><p>{escape(about)}</p>"


def _distributions(sides: Sequence[_Side]) -> list[Chart]:
    quantities: list[tuple[str, Callable[[Times], figures.Floats]]] = [
        ("Time to first token (TTFT)", lambda times: times.ttft_s),
        ("Time between tokens (ITL), mean of each request", lambda times: times.itl_s),
        ("Time to last token (E2E)", lambda times: times.e2e_s),
    ]
    return [
        Chart(
            title,
            "s",
            "share of requests",
            [Line(side.name, figures.distribution(of(side.times)), side.color) for side in sides],
            is_log_x=True,
            y_high=1.0,
        )
        for title, of in quantities
    ]


def _courses(sides: Sequence[_Side]) -> list[Chart]:
    end_s = max([float(side.times.arrival_s.max(initial=0.0)) for side in sides]) or 1.0

    def both(side: _Side, values: figures.Floats) -> list[Line]:
        course = [figures.over_time(side.times.arrival_s, values, quantile, end_s) for quantile in (0.5, 0.99)]
        return [Line(side.name, course[0], side.color), Line(f"{side.name} p99", course[1], side.color, is_dashed=True)]

    def one(of: Callable[[_Side], Points]) -> list[Line]:
        return [Line(side.name, of(side), side.color) for side in sides]

    time = "time, s"
    return [
        Chart("TTFT", time, "s", [line for side in sides for line in both(side, side.times.ttft_s)]),
        Chart("ITL", time, "s", [line for side in sides for line in both(side, side.times.itl_s)]),
        Chart("E2E", time, "s", [line for side in sides for line in both(side, side.times.e2e_s)]),
        Chart("Prompt tokens found cached", time, "share", one(lambda side: figures.hit_rate(side.times, end_s))),
        Chart("Requests without a first token", time, "requests", one(lambda side: figures.unanswered(side.times))),
        Chart("Requests waiting at workers", time, "requests", one(lambda side: figures.level(side.run, "waiting"))),
        Chart("Requests running", time, "requests", one(lambda side: figures.level(side.run, "running"))),
    ]


def _table(header: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    head = "".join([f"<th>{escape(text)}</th>" for text in ("policy", *header)])
    lines = [
        "<tr>" + "".join([f"<td>{escape(text)}</td>" for text in (name, *cells)]) + "</tr>"
        for name, cells in rows.items()
    ]
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def _key(names: Sequence[tuple[str, str]]) -> str:
    """Names with their colours."""
    keys = [f'<span class=key><i style="background:{color}"></i>{escape(name)}</span>' for name, color in names]
    return f"<div>{''.join(keys)}</div>"


def _grid(pictures: Sequence[str]) -> str:
    return f"<div class=pictures>{''.join(pictures)}</div>"
