"""A decode worker and a router that do what a script says, behind real gRPC servers.

The worker's tokens are a function of position only, as the contract demands of every worker; so an answer that was
moved between fakes must be the same as an undisturbed one.
"""

import asyncio
from array import array
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from armature.v1 import common_pb2 as common
from armature.v1 import router_pb2, worker_pb2
from armature.v1.router_pb2_grpc import RouterServicer, add_RouterServicer_to_server
from armature.v1.worker_pb2_grpc import DecodeServicer, add_DecodeServicer_to_server

BREAK = object()
"""A script that yields this breaks the stream, as a dying worker does."""

Script = Callable[["FakeWorker", worker_pb2.DecodeRequest], AsyncIterator[Any]]


async def faithful(worker: "FakeWorker", request: worker_pb2.DecodeRequest) -> AsyncIterator[worker_pb2.TokenDelta]:
    """Answers with the worker's tokens from where the request stands, `worker.batch` at a time."""
    position = output_of(request)
    while True:
        await worker.pace()
        delta = worker.delta(request, position)
        position += len(delta.token_ids)
        yield delta
        if delta.finish_reason:
            return


def breaking_after(tokens: int, how: Any = BREAK) -> Script:
    """Faithful for so many tokens, counted over the whole answer; then `how`: BREAK, a delta's fields, or silence."""

    async def script(worker: "FakeWorker", request: worker_pb2.DecodeRequest) -> AsyncIterator[Any]:
        position = output_of(request)
        while position < tokens:
            await worker.pace()
            delta = worker.delta(request, position, limit=tokens - position)
            position += len(delta.token_ids)
            yield delta
            if delta.finish_reason:
                return
        if isinstance(how, dict):
            yield worker_pb2.TokenDelta(stream_id=request.stream_id, output_index=position, **how)
        elif how is BREAK:
            yield BREAK
        else:
            await asyncio.Event().wait()

    return script


def error(code: "worker_pb2.WorkerError.Code.ValueType", message: str = "as scripted") -> dict[str, Any]:
    """Fields of a delta that ends a request badly."""
    return {
        "finish_reason": common.FINISH_REASON_ERROR,
        "error": worker_pb2.WorkerError(code=code, message=message),
    }


def output_of(request: worker_pb2.DecodeRequest) -> int:
    """How many output tokens the request brings along."""
    return len(request.token_ids) // 4 - request.prompt_tokens


@dataclass
class FakeWorker(DecodeServicer):
    """`answer` holds the token ids that it makes, by output position; the last one ends the answer."""

    worker_id: str
    answer: Sequence[int]
    card: common.ModelCard
    script: Script = faithful
    batch: int = 1
    step: asyncio.Event | None = None
    """If set, each step waits until it is set."""
    top_logprobs: bool = False
    address: str = ""
    stream_address: str = ""
    requests: list[worker_pb2.DecodeRequest] = field(default_factory=list)
    cancelled: list[int] = field(default_factory=list)
    finished: list[int] = field(default_factory=list)
    batches: list[worker_pb2.PromptBatch] = field(default_factory=list)
    embed_failures: list[grpc.StatusCode] = field(default_factory=list)
    """Statuses of the next calls to Embed."""
    streams: int = 0
    open_streams: int = 0

    @property
    def member(self) -> common.Member:
        info = common.WorkerInfo(
            role=common.ROLE_AGGREGATED,
            model=self.card,
            num_blocks=1000,
            max_num_seqs=64,
            max_num_batched_tokens=2048,
            engine="simulated",
        )
        return common.Member(
            id=self.worker_id, kind="decode-worker", address=self.address, stream_address=self.stream_address,
            state=common.MEMBER_STATE_READY, worker=info,
        )  # fmt: skip

    async def pace(self) -> None:
        if self.step is not None:
            await self.step.wait()
        await asyncio.sleep(0)

    def delta(
        self, request: worker_pb2.DecodeRequest, position: int, limit: int | None = None
    ) -> worker_pb2.TokenDelta:
        """The faithful delta at a position."""
        end = min(position + min(self.batch, limit or self.batch), request.max_tokens, len(self.answer))
        token_ids = list(self.answer[position:end])
        delta = worker_pb2.TokenDelta(stream_id=request.stream_id, output_index=position, token_ids=token_ids)
        if end == len(self.answer) and not request.sampling.ignore_eos:
            delta.finish_reason = common.FINISH_REASON_STOP
        elif end >= request.max_tokens:
            delta.finish_reason = common.FINISH_REASON_LENGTH
        if request.sampling.logprobs:
            for token_id in token_ids:
                others = [(token_id + n) % self.card.vocab_size for n in range(request.sampling.top_logprobs)]
                entry = delta.logprobs.add()
                for rank, other in enumerate([token_id, *others]):
                    entry.tokens.add(token_id=other, logprob=-0.25 * max(1, rank))
        if request.sampling.HasField("prompt_logprobs") and token_ids and position == output_of(request):
            delta.prompt_logprobs.CopyFrom(self.scores(request))
        if position == output_of(request):
            delta.info.decode_worker = self.worker_id
            delta.info.cached_tokens = 4
        return delta

    def scores(self, request: worker_pb2.DecodeRequest) -> common.PromptLogprobs:
        """The prompt token at position p has log probability -p; the likeliest ones are those after it, at -1, -2..."""
        top, prompt = request.sampling.prompt_logprobs, token_array(request.token_ids)[1 : request.prompt_tokens]
        ids, logprobs = array("I"), array("f")
        for position, token_id in enumerate(prompt, 1):
            ids.extend([token_id, *((token_id + place) % self.card.vocab_size for place in range(1, top + 1))])
            logprobs.extend([-position, *range(-1, -top - 1, -1)])
        ranks = array("I", [7] * len(prompt)).tobytes()
        return common.PromptLogprobs(top=top, token_ids=ids.tobytes(), logprobs=logprobs.tobytes(), ranks=ranks)

    async def Embed(self, request: worker_pb2.PromptBatch, context: Any) -> worker_pb2.EmbeddingBatch:
        """Components are the prompt's length, its first token and its last, then zeros."""
        self.batches.append(request)
        await self.pace()
        if self.embed_failures:
            await context.abort(self.embed_failures.pop(0), "as scripted")
        embeddings = worker_pb2.EmbeddingBatch()
        for packed in request.prompts:
            tokens = token_array(packed)
            vector = array("f", [len(tokens), tokens[0], tokens[-1]] + [0.0] * (self.card.embedding_size - 3))
            embeddings.embeddings.append(vector.tobytes())
        return embeddings

    async def Stream(self, request_iterator: Any, context: Any) -> AsyncIterator[worker_pb2.TokenFrame]:
        self.streams += 1
        self.open_streams += 1
        ready: asyncio.Queue[Any] = asyncio.Queue()
        live: dict[int, asyncio.Task[None]] = {}
        listener = asyncio.create_task(self._listen(request_iterator, ready, live))
        try:
            while True:
                items = [await ready.get()]
                while not ready.empty():
                    items.append(ready.get_nowait())
                deltas = [item for item in items if item is not BREAK]
                if deltas:
                    yield worker_pb2.TokenFrame(deltas=deltas)
                if BREAK in items:
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "the worker dies")
        finally:
            self.open_streams -= 1
            listener.cancel()
            for task in live.values():
                task.cancel()

    async def _listen(self, requests: Any, ready: asyncio.Queue[Any], live: dict[int, asyncio.Task[None]]) -> None:
        async for frame in requests:
            for request in frame.requests:
                self.requests.append(request)
                live[request.stream_id] = asyncio.create_task(self._produce(request, ready))
            for stream_id in frame.cancels:
                self.cancelled.append(stream_id)
                live[stream_id].cancel()

    async def _produce(self, request: worker_pb2.DecodeRequest, ready: asyncio.Queue[Any]) -> None:
        async for item in self.script(self, request):
            ready.put_nowait(item)
        self.finished.append(request.stream_id)


@dataclass
class FakeRouter(RouterServicer):
    """Places on the first worker that is not excluded, or as `decide` says; `held` queries are never answered."""

    workers: list[FakeWorker]
    router_id: str = "router-a"
    decide: Callable[[router_pb2.Query], router_pb2.Placement | None] | None = None
    address: str = ""
    stream_address: str = ""
    queries: list[router_pb2.Query] = field(default_factory=list)
    progress: list[router_pb2.Progress] = field(default_factory=list)
    messages: int = 0
    late: asyncio.Event | None = None
    """If set, answers wait until it is set."""
    within_s: float = 0.0
    """If above 0, queries are first told that they wait, and that they are answered within this time."""

    @property
    def member(self) -> common.Member:
        return common.Member(
            id=self.router_id, kind="router", address=self.address, stream_address=self.stream_address,
            state=common.MEMBER_STATE_READY,
        )  # fmt: skip

    def finished(self) -> list[str]:
        kind = router_pb2.Progress.KIND_FINISHED
        return [progress.request_id for progress in self.progress if progress.kind == kind]

    async def Route(self, request_iterator: Any, context: Any) -> AsyncIterator[router_pb2.RouteResponse]:
        answers: asyncio.Queue[router_pb2.Placement] = asyncio.Queue()
        listener = asyncio.create_task(self._listen(request_iterator, answers))
        try:
            while True:
                yield router_pb2.RouteResponse(placements=[await answers.get()])
        finally:
            listener.cancel()

    async def _listen(self, requests: Any, answers: asyncio.Queue[router_pb2.Placement]) -> None:
        async for request in requests:
            self.messages += 1
            self.progress.extend(request.progress)
            for query in request.queries:
                self.queries.append(query)
                if self.within_s:
                    waiting = router_pb2.Waiting(within_s=self.within_s)
                    answers.put_nowait(router_pb2.Placement(query_id=query.query_id, waiting=waiting))
                placement = self.decide(query) if self.decide else self.first(query)
                if self.late is not None:
                    await self.late.wait()
                if placement is not None:
                    placement.query_id = query.query_id
                    answers.put_nowait(placement)

    def first(self, query: router_pb2.Query) -> router_pb2.Placement:
        for worker in self.workers:
            if worker.worker_id not in query.excluded_workers:
                return router_pb2.Placement(
                    assigned=router_pb2.Assignment(
                        worker_id=worker.worker_id, address=worker.address, reason="the first", predicted_ttft_s=0.01
                    )
                )
        return rejection(router_pb2.Rejection.CODE_NO_WORKERS)


def rejection(code: "router_pb2.Rejection.Code.ValueType", retry_after_s: float = 0.0) -> router_pb2.Placement:
    rejected = router_pb2.Rejection(code=code, reason="as scripted", retry_after_s=retry_after_s)
    return router_pb2.Placement(rejected=rejected)


@asynccontextmanager
async def listening(*servicers: FakeWorker | FakeRouter) -> AsyncIterator[list[grpc.aio.Server]]:
    """Serve each on its own port."""
    servers: list[grpc.aio.Server] = []
    try:
        servers += [await listen(servicer) for servicer in servicers]
        yield servers
    finally:
        await asyncio.gather(*(server.stop(0) for server in servers))


async def listen(servicer: FakeWorker | FakeRouter) -> grpc.aio.Server:
    """Serve at its address, at a free port if it has none."""
    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    if isinstance(servicer, FakeWorker):
        add_DecodeServicer_to_server(servicer, server)
    else:
        add_RouterServicer_to_server(servicer, server)
    servicer.address = f"127.0.0.1:{server.add_insecure_port(servicer.address or '127.0.0.1:0')}"
    await server.start()
    return server


def token_array(packed: bytes) -> "array[int]":
    return array("I", packed)
