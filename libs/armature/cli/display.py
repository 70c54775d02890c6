"""What `armature up` shows while it runs: a live table on a terminal, lines where there is none."""

from collections.abc import Sequence
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from armature.cli.rows import Row
from armature.cli.show import plain, table
from armature.cli.supervisor import State, Supervised


class Display:
    """Use with `with`: a live table needs its terminal back at the end."""

    def __init__(self, console: Console, title: str) -> None:
        self._console = console
        self._title = title
        self._live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None

    def __enter__(self) -> "Display":
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    @property
    def is_live(self) -> bool:
        return self._live is not None

    def say(self, text: str) -> None:
        """Print above the table."""
        plain(self._console, [text])

    def show(self, rows: Sequence[Row]) -> None:
        """Replace the table; does nothing without a terminal."""
        if self._live:
            self._live.update(Group(Text(self._title), table(rows, self._console.width)))

    def changed(self, process: Supervised) -> None:
        """Tell what a process has come to; that it does not even start is told by whoever started it."""
        if process.state is State.CRASHED and process.has_served:
            self.say(f"{process.last_error}; it is started again")
        elif self._live is None and process.state in (State.READY, State.STOPPED):
            self.say(_line(process))


def _line(process: Supervised) -> str:
    if process.running is None:
        return f"{process.name} {process.state.value}"
    child, ready = process.running.child, process.running.ready
    address = f"http://{ready.http}" if ready.http else child.address
    source = f", {child.source}" if child.source else ""
    return f"{process.name} {process.state.value} on {address} (pid {child.pid}{source})"
