"""Logs on stderr: lines for people or one JSON object a line, each with the member that wrote it and its trace.

The standard library's logging is used throughout; fields travel as `extra={...}`.
"""

import logging
import math
import sys
import traceback
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

import msgspec
from opentelemetry import trace

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_VISIBLE = {code: repr(chr(code))[1:-1] for code in (*range(32), *range(127, 160), 0x2028, 0x2029)}
_encoder = msgspec.json.Encoder(enc_hook=str)


def setup_logging(
    service: str,
    member_id: str,
    *,
    level: str = "info",
    format: Literal["text", "json"] = "text",
    stream: TextIO | None = None,
) -> None:
    """Send all logging to `stream` (stderr if None). Replaces what an earlier call set up."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter(service, member_id) if format == "json" else TextFormatter(member_id))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # Below warning these tell about every connection and export of theirs.
    for chatty in ("asyncio", "grpc", "httpx", "httpcore", "urllib3", "opentelemetry"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, root.level))


class TextFormatter(logging.Formatter):
    """`12:04:31.250 warning decode-worker-3f9a1c armature.runtime.service: message key=value`."""

    def __init__(self, member_id: str) -> None:
        super().__init__()
        self._member_id = member_id

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).strftime("%H:%M:%S.%f")[:-3]
        fields = "".join(f" {key}={value}" for key, value in (_extra(record) | _trace_ids()).items())
        # Words of others stand in messages: they must neither begin a line nor steer the terminal.
        message = f"{record.getMessage()}{fields}".translate(_VISIBLE)
        head = f"{time} {record.levelname.lower():7} {self._member_id} {record.name}: {message}"
        cause = _exception_text(record)
        return f"{head}\n{cause}" if cause else head


class JsonFormatter(logging.Formatter):
    """One JSON object: time (RFC 3339, UTC), level, service, member, logger, message, trace_id and span_id if a span
    is current, exception if there is one, and the record's own fields."""

    def __init__(self, service: str, member_id: str) -> None:
        super().__init__()
        self._service = service
        self._member_id = member_id

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds"),
            "level": record.levelname.lower(),
            "service": self._service,
            "member": self._member_id,
            "logger": record.name,
            "message": record.getMessage(),
            **_trace_ids(),
        }
        cause = _exception_text(record)
        if cause:
            entry["exception"] = cause
        # The record's own fields never hide ours.
        return _encoder.encode(_extra(record) | entry).decode()


class Seldom(logging.Filter):
    """Lets one record pass every `interval_s`, for a library that repeats itself."""

    def __init__(self, interval_s: float) -> None:
        super().__init__()
        self._interval_s = interval_s
        self._passed_at_s = -math.inf

    def filter(self, record: logging.LogRecord) -> bool:
        if record.created < self._passed_at_s + self._interval_s:
            return False
        self._passed_at_s = record.created
        return True


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


def _trace_ids() -> dict[str, str]:
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return {}
    return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}


def _exception_text(record: logging.LogRecord) -> str:
    if not record.exc_info or record.exc_info[1] is None:
        return ""
    return "".join(traceback.format_exception(record.exc_info[1])).rstrip()
