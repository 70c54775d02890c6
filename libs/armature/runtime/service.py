"""The life of a service process: start, be known to the cell, drain, stop. The same for all services.

A service's app composes its parts on a `Runtime` and ends with `await runtime.serve(...)`. The process ends with 0 when
it was told to stop and has drained, with 2 for wrong settings, with 1 for everything else. Failures that an operator
can mend are one line on stderr; a task that crashes ends the process, since half a service is worse than none.
"""

import asyncio
import logging
import secrets
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias, TypeVar

import uvloop

from armature.runtime import telemetry
from armature.runtime.errors import StartError
from armature.runtime.logs import setup_logging
from armature.runtime.metrics import watch_loop_lag
from armature.runtime.runtime import Runtime, Stopped
from armature.runtime.settings import CommonSettings, SettingsError, load

__all__ = ["App", "Runtime", "main", "run"]

log = logging.getLogger(__name__)

S = TypeVar("S", bound=CommonSettings)

EXIT_OK, EXIT_FAILED, EXIT_WRONG_SETTINGS = 0, 1, 2


App: TypeAlias = Callable[[Runtime[S]], Awaitable[None]]


def main(
    kind: str,
    settings_class: type[S],
    app: App[S],
    argv: Sequence[str] | None = None,
    *,
    start: Callable[[str, S, App[S]], int] | None = None,
) -> int:
    """Load the settings, run the service, return the exit status: the whole of a service's `main`.

    `start` runs it in another way than `run`.
    """
    try:
        settings = load(settings_class, argv, prog=kind)
    except SettingsError as error:
        _tell(kind, str(error))
        return EXIT_WRONG_SETTINGS
    try:
        return (start or run)(kind, settings, app)
    except StartError as error:
        _tell(kind, str(error))
        return EXIT_FAILED


def run(kind: str, settings: S, app: App[S]) -> int:
    """Run `app` on an event loop of its own until it returns, fails or is told to stop; return the exit status."""
    member_id = settings.id or f"{kind}-{secrets.token_hex(3)}"
    setup_logging(kind, member_id, level=settings.log_level, format=settings.log_format)
    for risk in settings.risks:
        log.warning("%s", risk)
    telemetry.setup_tracing(kind, settings.otlp_endpoint, member_id=member_id, ratio=settings.trace_ratio)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_supervise(kind, member_id, settings, app))
    finally:
        telemetry.shutdown_tracing()


async def _supervise(kind: str, member_id: str, settings: S, app: Callable[[Runtime[S]], Awaitable[None]]) -> int:
    runtime: Runtime[S] | None = None
    try:
        async with asyncio.TaskGroup() as tasks:
            runtime = Runtime(kind, member_id, settings, tasks)
            _catch_signals(runtime)
            tasks.create_task(watch_loop_lag(), name="loop lag")
            async with runtime:
                await app(runtime)
            raise Stopped  # the only way to make a TaskGroup cancel the tasks that it still has
    except BaseExceptionGroup as group:
        failures = [error for error in _leaves(group) if not isinstance(error, Stopped)]
    return _judge(kind, failures) or (EXIT_FAILED if runtime and runtime.was_hurried else EXIT_OK)


def _catch_signals(runtime: Runtime[S]) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, runtime.on_signal, number.name)


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


def _judge(kind: str, failures: list[BaseException]) -> int:
    for error in failures:
        if isinstance(error, StartError):
            _tell(kind, str(error))
        else:
            log.critical("the process ends: %s: %s", type(error).__name__, error, exc_info=error)
    return EXIT_FAILED if failures else EXIT_OK


def _tell(kind: str, message: str) -> None:
    print(f"{kind}: {' '.join(message.split())}", file=sys.stderr)  # noqa: T201 -- for the operator, whatever the log
