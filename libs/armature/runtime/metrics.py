"""The /metrics endpoint: prometheus_client's default registry on a port of its own, served by threads of its own.

Metrics themselves are made where they are counted, at module level, with prometheus_client.
"""

import asyncio
import importlib.metadata
import threading
from dataclasses import dataclass
from typing import Any

from prometheus_client import Gauge, Histogram, start_http_server

from armature.runtime.errors import StartError

LAG_INTERVAL_S = 1.0
"""More often would keep processors from resting that have nothing to do."""

_build_info = Gauge("armature_build_info", "Always 1; the labels say what runs.", ["version", "kind", "member"])
_loop_lag_s = Histogram(
    "armature_event_loop_lag_seconds",
    "How late the event loop wakes a sleeper: what every request waits on top.",
    buckets=(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5),
)
_tasks = Gauge("armature_event_loop_tasks", "Tasks of the event loop, those included that wait for work.")


@dataclass(frozen=True, slots=True)
class MetricsServer:
    """A running endpoint. `close` blocks until its thread has ended; call it off the loop."""

    port: int
    _server: Any
    _thread: threading.Thread

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def start_metrics(host: str, port: int, *, kind: str, member_id: str) -> MetricsServer:
    """Serve /metrics on `host:port`; port 0 takes a free one.

    Raises:
        StartError: the port is taken.
    """
    _build_info.labels(importlib.metadata.version("armature"), kind, member_id).set(1)
    try:
        server, thread = start_http_server(port, addr=host)
    except OSError as error:
        why = f"can't serve metrics on {host}:{port} ({error.strerror}): set another --metrics-port"
        raise StartError(why) from error
    return MetricsServer(server.server_port, server, thread)


async def watch_loop_lag() -> None:
    """Measure the event loop's lag until cancelled."""
    loop = asyncio.get_running_loop()
    _tasks.set_function(lambda: len(asyncio.all_tasks(loop)))  # when it is asked for, so it costs nothing
    while True:
        due_s = loop.time() + LAG_INTERVAL_S
        await asyncio.sleep(LAG_INTERVAL_S)
        _loop_lag_s.observe(max(0.0, loop.time() - due_s))
