"""Spans and logs of a request that crosses services, as an OTLP collector and a log reader get them."""

import asyncio
import io
import json
import logging
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path

import grpc
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.trace import INVALID_SPAN, SpanKind, get_current_span

from armature.runtime import telemetry
from armature.runtime.channels import ChannelPool
from armature.runtime.logs import JsonFormatter, Seldom, TextFormatter
from armature.runtime.processes import start_etcd
from armature.v1 import kv_index_pb2, kv_index_pb2_grpc
from tests.support.otlp_sink import OtlpSink, otlp_sink
from tests.support.running import running

PARENT = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"


@pytest.fixture
async def sink() -> AsyncIterator[OtlpSink]:
    async with otlp_sink() as sink:
        yield sink
        await asyncio.to_thread(telemetry.shutdown_tracing)


@pytest.fixture
def tracing(sink: OtlpSink) -> OtlpSink:
    telemetry.setup_tracing("test", sink.address, member_id="test-1")
    return sink


async def spans_of(sink: OtlpSink) -> dict[str, Span]:
    """What has been recorded, by name. Ends tracing."""
    await asyncio.to_thread(telemetry.shutdown_tracing)
    return {received.name: received.span for received in sink.spans}


def test_without_a_collector_spans_cost_and_do_nothing() -> None:
    with telemetry.span("work", traceparent=PARENT, tokens=3) as span:
        assert span is INVALID_SPAN
        assert telemetry.current_traceparent() == telemetry.traceparent_of(span) == ""
        assert telemetry.trace_metadata() == ()
    assert not telemetry.is_tracing()


async def test_spans_nest_and_carry_their_attributes(tracing: OtlpSink) -> None:
    with telemetry.span("outer", kind=SpanKind.CLIENT, tokens=3) as outer:
        assert telemetry.current_traceparent() == telemetry.traceparent_of(outer)
        assert telemetry.trace_metadata() == (("traceparent", telemetry.traceparent_of(outer)),)
        with telemetry.span("inner") as inner:
            assert get_current_span() is inner
        assert get_current_span() is outer
    assert telemetry.current_traceparent() == ""
    spans = await spans_of(tracing)
    assert spans["inner"].parent_span_id == spans["outer"].span_id
    assert spans["inner"].trace_id == spans["outer"].trace_id
    assert spans["outer"].kind == Span.SPAN_KIND_CLIENT
    assert {item.key: item.value.int_value for item in spans["outer"].attributes} == {"tokens": 3}
    assert tracing.spans[0].service == "test"


async def test_a_given_parent_beats_the_current_span(tracing: OtlpSink) -> None:
    with telemetry.span("unrelated"), telemetry.span("work", traceparent=PARENT) as span:
        assert telemetry.traceparent_of(span).split("-")[1] == PARENT.split("-")[1]
    spans = await spans_of(tracing)
    assert spans["work"].trace_id.hex() == PARENT.split("-")[1]
    assert spans["work"].parent_span_id.hex() == PARENT.split("-")[2]


async def test_a_parent_that_is_not_sampled_keeps_its_children_out(tracing: OtlpSink) -> None:
    with telemetry.span("work", traceparent=PARENT[:-1] + "0"):
        pass
    assert await spans_of(tracing) == {}


@pytest.mark.parametrize("text", ["", "nonsense", PARENT[:-3], PARENT.replace("1", "x"), f"00-{0:032x}-{1:016x}-01"])
async def test_a_malformed_parent_starts_a_new_trace(tracing: OtlpSink, text: str) -> None:
    with telemetry.span("work", traceparent=text):
        pass
    spans = await spans_of(tracing)
    assert spans["work"].parent_span_id == b""


async def test_a_failed_or_cancelled_span_ends_with_the_reason(tracing: OtlpSink) -> None:
    with pytest.raises(ValueError), telemetry.span("failed"):
        raise ValueError("no such block")

    async def work() -> None:
        with telemetry.span("cancelled"):
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    spans = await spans_of(tracing)
    assert spans["failed"].status == Status(code=Status.STATUS_CODE_ERROR, message="ValueError: no such block")
    assert spans["failed"].events[0].name == "exception"
    assert spans["cancelled"].status == Status(code=Status.STATUS_CODE_ERROR, message="cancelled")


async def test_a_span_may_be_open_in_a_generator_that_another_task_closes(
    tracing: OtlpSink, caplog: pytest.LogCaptureFixture
) -> None:
    async def stream() -> AsyncIterator[int]:
        with telemetry.span("stream"):
            yield 1
            yield 2

    generator = stream()
    assert await anext(generator) == 1
    async with aclosing(generator):  # pyright: ignore[reportArgumentType]
        await asyncio.create_task(anext(generator))  # pyright: ignore[reportArgumentType]
    assert not caplog.records
    spans = await spans_of(tracing)
    assert spans["stream"].status.message == "cancelled"


async def test_a_trace_goes_through_two_services_and_their_logs(sink: OtlpSink, tmp_path: Path) -> None:
    etcd = await start_etcd(tmp_path / "etcd")
    module, pool = "tests.support.demo_service", ChannelPool()
    flags = ("--etcd", etcd.address, "--otlp-endpoint", sink.address, "--log-format", "json")
    async with (
        running(module, *flags, "--id", "demo-2", stderr=tmp_path / "second") as second,
        running(module, *flags, "--id", "demo-1", "--next", second.address(), stderr=tmp_path / "first") as first,
    ):
        stub = kv_index_pb2_grpc.KvIndexStub(pool.get(first.address()))
        metadata = (("traceparent", PARENT),)
        await stub.Match(kv_index_pb2.MatchRequest(sequence_hashes=b"abc"), timeout=5, metadata=metadata)
        stream = stub.Follow(kv_index_pb2.FollowRequest(), timeout=20, metadata=metadata)
        await stream.read()
        stream.cancel()
        for service in (first, second):
            service.signal(signal.SIGTERM)
            assert await service.exit_status() == 0
        logs = [json.loads(line) for service in (first, second) for line in service.stderr.splitlines()]
    await pool.close()
    await etcd.stop()

    received = [received for received in sink.spans if received.trace_id == PARENT.split("-")[1]]
    calls = [r.span for r in received if r.name == "/armature.v1.KvIndex/Match"]
    outer = next(call for call in calls if call.parent_span_id.hex() == PARENT.split("-")[2])
    inner = next(call for call in calls if call is not outer)
    works = {r.span.span_id: r.span for r in received if r.name == "match"}
    assert len(calls) == len(works) == 2
    assert works[inner.parent_span_id].parent_span_id == outer.span_id  # service 2 in work of 1 in call of 1
    assert inner.kind == outer.kind == Span.SPAN_KIND_SERVER
    follow = next(r.span for r in received if r.name == "/armature.v1.KvIndex/Follow")
    assert follow.status.message == "cancelled"

    lines = [entry for entry in logs if entry["message"] == "matching"]
    assert [line["member"] for line in lines] == ["demo-1", "demo-2"]
    for line in lines:
        assert line["trace_id"] == PARENT.split("-")[1]
        assert bytes.fromhex(line["span_id"]) in works
        assert (line["service"], line["level"], line["blocks"]) == ("demo", "info", 3)


async def test_an_absent_collector_neither_stops_nor_delays_the_end(tmp_path: Path) -> None:
    etcd = await start_etcd(tmp_path / "etcd")
    flags = ("--etcd", etcd.address, "--otlp-endpoint", "127.0.0.1:1")
    async with running("tests.support.demo_service", *flags, stderr=tmp_path / "stderr") as demo:
        async with grpc.aio.insecure_channel(demo.address()) as channel:
            await kv_index_pb2_grpc.KvIndexStub(channel).Match(kv_index_pb2.MatchRequest(), timeout=5)
        demo.signal(signal.SIGTERM)
        assert await demo.exit_status(timeout_s=12) == 0
    await etcd.stop()


def test_a_collector_that_hangs_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "FLUSH_TIMEOUT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        telemetry.setup_tracing("test", f"127.0.0.1:{silent.getsockname()[1]}")
        with telemetry.span("work"):
            pass
        began_s = time.monotonic()
        telemetry.shutdown_tracing()
        assert time.monotonic() - began_s < 3.0
    assert not telemetry.is_tracing()


def test_a_library_that_repeats_itself_is_heard_once_in_a_while() -> None:
    seldom = Seldom(60.0)
    passed = [seldom.filter(logging.makeLogRecord({"created": 1000.0 + after_s})) for after_s in (0, 1, 59, 60, 61)]
    assert passed == [True, False, False, True, False]


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    logger = logging.getLogger("armature.test")
    logger.propagate = False
    yield logger
    logger.handlers.clear()
    logger.propagate = True


def logged(logger: logging.Logger, formatter: logging.Formatter) -> io.StringIO:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    logger.handlers[:] = [handler]
    return stream


def test_a_json_log_is_one_object_a_line_even_with_an_exception(logger: logging.Logger) -> None:
    stream = logged(logger, JsonFormatter("router", "router-1"))
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logger.exception("failed on %s", "x", extra={"path": Path("a"), "member": "forged"})
    (line,) = stream.getvalue().splitlines()
    entry = json.loads(line)
    assert (entry["message"], entry["level"], entry["member"], entry["path"]) == (
        "failed on x",
        "error",
        "router-1",
        "a",
    )
    assert entry["exception"].endswith("ValueError: two\nlines")
    assert entry["time"].endswith("+00:00")
    assert "trace_id" not in entry


def test_a_text_log_is_one_line_with_its_fields(logger: logging.Logger) -> None:
    stream = logged(logger, TextFormatter("router-1"))
    logger.warning("slow", extra={"blocks": 3})
    assert stream.getvalue().split(" ", 1)[1] == "warning router-1 armature.test: slow blocks=3\n"


def test_words_of_others_begin_no_line_and_do_not_steer_the_terminal() -> None:
    logger = logging.Logger("words")
    stream = logged(logger, TextFormatter("router-1"))
    logger.warning("no model %s", "x\n12:00:00 error forged\x1b[2J\u2028", extra={"peer": "a\rb"})
    (line,) = stream.getvalue().splitlines()
    assert line.endswith(r"no model x\n12:00:00 error forged\x1b[2J\u2028 peer=a\rb")
