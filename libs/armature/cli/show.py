"""How a cell looks on a terminal, and what it says where there is none."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from armature.cli.rows import HEADERS, Row

_NUMBERS = {"pid", "run+wait", "kv", "cached tokens", "tokens/s", "restarts"}
# What a narrow terminal does without, first to last.
_DISPENSABLE = ("pid", "role", "id", "address", "cached tokens", "tokens/s")
_GAP = 2


def table(rows: Sequence[Row], width: int) -> Table:
    """The rows for a terminal of `width` characters; columns that are empty or don't fit are left out."""
    shown = [i for i, _ in enumerate(HEADERS) if any(row.cells[i] for row in rows)]
    for header in _DISPENSABLE:
        if sum(_width(rows, i) + _GAP for i in shown) <= width:
            break
        shown = [i for i in shown if HEADERS[i] != header]
    made = Table(box=None, padding=(0, _GAP, 0, 0))
    for i in shown:
        made.add_column(HEADERS[i], justify="right" if HEADERS[i] in _NUMBERS else "left", no_wrap=True)
    for row in rows:
        made.add_row(*(row.cells[i] for i in shown), style=None if row.is_well else "yellow")
    return made


def _width(rows: Sequence[Row], column: int) -> int:
    return max(len(HEADERS[column]), *(len(row.cells[column]) for row in rows))


def greeting(url: str, model: str, chat: str, *, has_admin_key: bool = False) -> str:
    """What to do with a cell that serves; `chat` is the command that talks to it."""
    who = "whoever has the admin key" if has_admin_key else "this machine only, as no admin key is set"
    return f"""serving {model} on {url}

  curl -s {url}/v1/chat/completions -H 'content-type: application/json' -d '{{
    "model": "{model}", "temperature": 0, "armature": {{"include_info": true}},
    "messages": [{{"role": "user", "content": "What does os.path.join do?"}}]}}'

  {chat} "What does os.path.join do?"

console for {who}: {url}/console

Ctrl-C stops the cell.
"""


def plain(console: Console, lines: Sequence[str]) -> None:
    """Print without markup, colours or wrapping, for logs and pipes."""
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
