"""What is shown while a cell runs."""

import io

from rich.console import Console

from armature.cli.display import Display
from armature.cli.rows import rows
from armature.cli.state import ProcessState

ROUTER = ProcessState("router", "router", "ready", 7, "router-1a", "127.0.0.1:5", "", 0, "router.log")


def test_a_terminal_gets_a_table_and_lines_above_it() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    with Display(console, "cell blue [x]") as display:
        display.show(rows([ROUTER]))
        display.say("router was killed by signal [9]")
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "router was killed by signal [9]" in shown
    assert "127.0.0.1:5" in shown
    assert "cell blue [x]" in shown


def test_a_file_gets_lines_only() -> None:
    console = Console(file=io.StringIO())
    with Display(console, "cell blue") as display:
        assert not display.is_live
        display.show(rows([ROUTER]))
        display.say("a line that is longer than eighty characters stays one line, so that a log can be searched for it")
    assert len(console.file.getvalue().splitlines()) == 1  # type: ignore[attr-defined]
