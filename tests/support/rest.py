"""A cell at rest: nothing runs, nothing waits, every block is free or cached."""

import httpx

from tests.support.cell import SCRAPE_TIMEOUT_S, Cell, Service
from tests.support.eventually import eventually

BUSY = ("running_seqs", "waiting_seqs", "waiting_prefill_tokens", "staged_blocks", "quarantined_blocks", "stagings")


async def unrest(service: Service) -> dict[str, float]:
    """What keeps a worker or gateway from rest; empty when it is at rest."""
    metrics = await service.metrics()
    if "armature_gateway_inflight_requests" in metrics:
        inflight = metrics["armature_gateway_inflight_requests"]
        return {"inflight_requests": inflight} if inflight else {}
    busy = {name: metrics[f"armature_worker_{name}"] for name in BUSY}
    busy["blocks in use"] = metrics["armature_worker_total_blocks"] - metrics["armature_worker_free_blocks"]
    return {name: value for name, value in busy.items() if value}


async def until_at_rest(cell: Cell, timeout_s: float = 45.0) -> None:
    """Wait until no worker holds a block or a request, and the gateway has none in flight.

    Raises:
        AssertionError: something is left after `timeout_s`: a leak.
    """
    for service in [*cell.workers(), cell.services["gateway"]]:
        left: dict[str, float] = {}

        async def is_at_rest(service: Service = service, left: dict[str, float] = left) -> bool:
            left.clear()
            try:
                left.update(await unrest(service))
            except httpx.TimeoutException:
                left["seconds without an answer"] = SCRAPE_TIMEOUT_S
            return not left

        try:
            await eventually(is_at_rest, timeout_s)
        except AssertionError:
            raise AssertionError(f"{service.name} is not at rest after {timeout_s:g} s: {left}") from None
