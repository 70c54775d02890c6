"""A cell in which every member shows a certificate: it serves, and lets no stranger in."""

from pathlib import Path

import grpc
import httpx
import pytest

from armature.v1.inference_pb2 import ListModelsRequest
from armature.v1.inference_pb2_grpc import InferenceStub
from tests.support.cell import running_cell
from tests.support.certificates import Authority


async def test_a_cell_under_mutual_tls_serves_and_refuses_strangers(etcd_address: str, tmp_path: Path) -> None:
    files = Authority(tmp_path).issue("member")
    env = {"ARMATURE_TLS_CERT": str(files.cert), "ARMATURE_TLS_KEY": str(files.key), "ARMATURE_TLS_CA": str(files.ca)}
    flags = {"router": ("--disaggregation", "always")}
    workers = ("--engine", "simulated")
    async with (
        running_cell(tmp_path / "cell", etcd_address, worker_flags=workers, flags=flags, env=env) as cell,
        httpx.AsyncClient(timeout=30.0) as client,
    ):
        body = {"model": "demo", "prompt": list(range(300, 500)), "max_tokens": 5, "armature": {"include_info": True}}
        answer = (await client.post(f"{cell.url}/v1/completions", json=body)).json()
        assert answer["armature"]["transport"] == "nixl"
        for service in cell.services.values():
            async with grpc.aio.insecure_channel(service.addresses["grpc"]) as stranger:
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await InferenceStub(stranger).ListModels(ListModelsRequest(), timeout=5)
                assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
