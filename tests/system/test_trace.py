"""One request is one trace, through every service that it touches."""

from pathlib import Path

import httpx

from tests.support.cell import running_cell
from tests.support.otlp_sink import otlp_sink

# span -> (its service, its parent's span)
EXPECTED = {
    "gateway": ("gateway", None),
    "route": ("router", "gateway"),
    "decode": ("decode-worker", "gateway"),
    "transfer": ("decode-worker", "decode"),
    "prefill": ("prefill-worker", "decode"),
}


async def test_one_request_is_one_trace_with_a_span_of_every_part(etcd_address: str, tmp_path: Path) -> None:
    async with (
        otlp_sink() as sink,
        running_cell(
            tmp_path,
            etcd_address,
            decode=1,
            flags={"router": ("--disaggregation", "always")},
            env={"ARMATURE_OTLP_ENDPOINT": sink.address},
        ) as cell,
        httpx.AsyncClient(timeout=30.0) as client,
    ):
        body = {"model": "demo", "prompt": list(range(300, 500)), "max_tokens": 5}
        assert (await client.post(f"{cell.url}/v1/completions", json=body)).status_code == 200
        spans = await sink.wait_for(lambda seen: set(EXPECTED) <= {item.name for item in seen}, timeout_s=20.0)

    (gateway,) = [item for item in spans if item.name == "gateway"]
    by_id = {item.span.span_id: item for item in spans}
    for name, (service, parent) in EXPECTED.items():
        (found,) = [item for item in spans if item.name == name and item.trace_id == gateway.trace_id]
        assert found.service == service
        ancestors = []
        above = by_id.get(found.span.parent_span_id)
        while above is not None:
            ancestors.append(above.name)
            above = by_id.get(above.span.parent_span_id)
        assert parent is None or parent in ancestors, f"{name} hangs under {ancestors}"
        assert found.span.end_time_unix_nano >= found.span.start_time_unix_nano
