from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from armature.engines.torch.runner import TorchRunner, torch_engine_runner
from tests.support.models import make_model


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny matrices gain nothing from a second core, and threads that wait for a busy one lose milliseconds."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of a tiny model of a kind, made once."""
    made: dict[str, Path] = {}

    def of(kind: str) -> Path:
        if kind not in made:
            made[kind] = make_model(tmp_path_factory.mktemp(kind), kind)
        return made[kind]

    return of


@pytest.fixture
def make_runner(checkpoint: Callable[[str], Path]) -> Callable[..., TorchRunner]:
    def make(kind: str = "llama", **changes: Any) -> TorchRunner:
        options: dict[str, Any] = {"model_name": "tiny", "device": "cpu", "block_size": 16, "num_blocks": 128}
        if not {"num_blocks", "kv_cache_bytes"}.isdisjoint(changes):
            del options["num_blocks"]
        return torch_engine_runner(checkpoint(kind), **(options | changes))

    return make
