"""The campaign of `make fuzz-gateway` in short: wrong requests, clients that leave, clients that do not read."""

from pathlib import Path

import pytest

from tests.campaigns.gateway.run import campaign, fuzzed_cell

pytestmark = pytest.mark.slow

MAX_UNREAD_MIB = 2.0
"""Of one answer that nobody reads: 256 KiB packed, what is written and what is being written."""


async def test_a_gateway_is_as_before_when_all_kinds_of_clients_have_gone(etcd_address: str, tmp_path: Path) -> None:
    async with fuzzed_cell(tmp_path / "fuzz", etcd_address) as cell:
        result = await campaign(
            cell, seed=11, bodies=300, messages=200, clients=40, slow_readers=4, examples=0, is_measured=False
        )
    assert not result["failures"]
    assert sum(sum(answers.values()) for answers in result["cases"].values()) == 500
    peaks = {name: held["peak_mib_per_client"] for name, held in result["unread_answers"].items()}
    assert [*peaks] == ["http unread", "grpc unread"]
    assert not {name: peak for name, peak in peaks.items() if peak > MAX_UNREAD_MIB}
