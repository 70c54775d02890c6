"""A gateway in this process: the real core, HTTP server and gRPC servicer, with fakes behind it."""

import asyncio
import atexit
import contextlib
import functools
import shutil
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

from armature.openai.serving.core import ServingCore
from armature.openai.serving.http.seats import SeatOptions
from armature.openai.serving.http.server import HttpServer
from armature.openai.serving.options import ServingOptions
from armature.openai.serving.responses.store import ResponseStore
from armature.openai.serving.rest import make_rest_app
from armature.openai.tokenization import ModelTokenizer
from armature.runtime.channels import ChannelPool
from armature.runtime.roster import MemberChange
from armature.v1.common_pb2 import Member, ModelCard
from tests.services.gateway.fakes import FakeRouter, FakeWorker, listening
from tests.support.models import make_tokenizer

MODEL = "tiny"
TEXT = "The router knows which worker has which block. Grüße, 你好 🙂🚀! It is fine."
EOS = 2
QUICK = ServingOptions(
    stall_timeout_s=0.4,
    first_token_timeout_s=1.5,
    request_timeout_s=10.0,
    route_timeout_s=0.4,
    router_retry_s=0.2,
    write_timeout_s=1.0,
    body_timeout_s=1.0,
)


@functools.cache
def model_directory() -> Path:
    directory = Path(tempfile.mkdtemp(prefix="armature-tokenizer-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    make_tokenizer(directory)
    return directory


@functools.cache
def tokenizer() -> ModelTokenizer:
    return ModelTokenizer.load(model_directory())


def encode(text: str) -> list[int]:
    return tokenizer().vocabulary.tokenizer.encode(text, add_special_tokens=False).ids


@functools.cache
def answer() -> tuple[int, ...]:
    """`TEXT` as a worker would produce it, the end token included."""
    return (*encode(TEXT), EOS)


def card(**changes: Any) -> ModelCard:
    fields: dict[str, Any] = {
        "name": MODEL,
        "path": str(model_directory()),
        "context_length": 512,
        "block_size": 8,
        "vocab_size": 512,
        "eos_token_ids": [0, EOS],
        "block_bytes": 1024,
        "embedding_size": 8,
    }
    return ModelCard(**(fields | changes))


def make_worker(worker_id: str = "worker-a", **fields: Any) -> FakeWorker:
    return FakeWorker(worker_id, **({"answer": answer(), "card": card()} | fields))


@dataclass
class Gateway:
    core: ServingCore
    url: str
    client: httpx.AsyncClient

    def openai(self, **options: Any) -> AsyncOpenAI:
        return AsyncOpenAI(base_url=f"{self.url}/v1", **({"api_key": "none", "max_retries": 0} | options))

    def anthropic(self, **options: Any) -> AsyncAnthropic:
        return AsyncAnthropic(base_url=self.url, **({"api_key": "none", "max_retries": 0} | options))

    def tell(self, kind: Any, member: Member) -> None:
        self.core.member_changed(MemberChange(kind, member))

    async def chat(self, **fields: Any) -> httpx.Response:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]} | fields
        return await self.client.post("/v1/chat/completions", json=body)


class Tasks(asyncio.TaskGroup):
    """A TaskGroup that ends: the test cancels what is left."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[asyncio.Task[Any]] = []

    def create_task(self, *args: Any, **options: Any) -> asyncio.Task[Any]:
        task = super().create_task(*args, **options)
        self.made.append(task)
        return task


@asynccontextmanager
async def running_core(
    workers: Sequence[FakeWorker], routers: Sequence[FakeRouter] = (), options: ServingOptions = QUICK
) -> AsyncIterator[tuple[ServingCore, asyncio.TaskGroup]]:
    """A core that knows these members, which must be listening, and who owns its tasks."""
    channels = ChannelPool()
    async with Tasks() as tasks:
        core = ServingCore("gateway-a", channels, tasks, secret=b"secret", options=options)
        for servicer in (*workers, *routers):
            core.member_changed(MemberChange("joined", servicer.member))
        try:
            yield core, tasks
        finally:
            for task in tasks.made:
                task.cancel()
    await channels.close()


@asynccontextmanager
async def running_gateway(
    *workers: FakeWorker,
    routers: Sequence[FakeRouter] | None = None,
    options: ServingOptions = QUICK,
    serve: bool = True,
    seats: SeatOptions | None = None,
) -> AsyncIterator[Gateway]:
    """A gateway with a router in front of the workers, unless others are given; `serve` starts the fakes too."""
    routers = [FakeRouter(list(workers))] if routers is None else routers
    fakes = listening(*workers, *routers) if serve else contextlib.nullcontext()
    async with fakes, running_core(workers, routers, options) as (core, _):
        app = make_rest_app(core, ResponseStore(None, "test"))
        http = HttpServer(app, "127.0.0.1", 0, write_timeout_s=options.write_timeout_s, seats=seats)
        running = asyncio.create_task(http.run())
        await http.started()
        url = f"http://127.0.0.1:{http.port}"
        async with httpx.AsyncClient(base_url=url, timeout=15.0) as client:
            yield Gateway(core, url, client)
        http.stop(now=True)
        await running
