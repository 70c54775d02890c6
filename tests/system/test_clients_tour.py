"""The tour of the clients that people use, as `make tour` goes it, on a cell with a real model and a Valkey."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from armature.runtime.processes import start_valkey
from tests.support.cell import Cell, running_cell
from tests.tour.steps import CLIENTS, Target, run_client

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
async def cell(etcd_address: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cell]:
    folder: Path = tmp_path_factory.mktemp("tour")
    valkey = await start_valkey(folder / "valkey")
    flags = {"gateway": ("--redis", f"redis://{valkey.address}", "--redis-timeout-s", "10")}
    async with running_cell(folder, etcd_address, prefill=0, decode=0, aggregated=1, flags=flags) as cell:
        yield cell
    await valkey.kill()


# LiteLLM can't be installed beside the others.
@pytest.mark.parametrize("client", [name for name in CLIENTS if name != "litellm"])
async def test_every_step_of_a_client_passes(client: str, cell: Cell) -> None:
    outcomes = await run_client(client, Target(cell.url, cell.grpc))
    assert [(outcome.step, outcome.error) for outcome in outcomes if outcome.error] == []
