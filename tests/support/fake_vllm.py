"""vLLM as far as our adapter uses it: answers what a test says, or as many tokens as are asked for."""

import asyncio
import tempfile
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from armature.blocks.events import KvEvent
from armature.engines.engine import EngineInfo
from armature.engines.vllm.engine import Launched, StatsRelay
from armature.engines.vllm.surface import Stats, StepNews

INFO = EngineInfo(
    name="vllm", model="m", model_path="", context_length=512, vocab_size=1000, eos_token_ids=(2,), block_size=4,
    block_bytes=64, num_blocks=100, max_num_seqs=8, max_num_batched_tokens=64, kv_fingerprint=b"v",
)  # fmt: skip


@dataclass
class FakeScore:
    logprob: float
    rank: int | None


@dataclass
class FakeCompletion:
    token_ids: Sequence[int]
    finish_reason: str | None = None
    logprobs: Any = None


@dataclass
class FakeOutput:
    outputs: Sequence[FakeCompletion]
    num_cached_tokens: int | None = 0
    prompt_logprobs: Any = None


@dataclass
class FakeVllm:
    """Every request gets a token in each of its steps; the n-th is `100 + n`, until the limit."""

    relay: StatsRelay = field(default_factory=StatsRelay)
    errored: bool = False
    is_shut_down: bool = False
    asked: dict[str, tuple[Any, dict[str, Any], int]] = field(default_factory=dict)
    aborted: list[str] = field(default_factory=list)
    error: Callable[[str], Exception | None] = lambda _: None
    _queues: dict[str, asyncio.Queue[Any]] = field(default_factory=dict)
    _made: dict[str, int] = field(default_factory=dict)

    async def generate(
        self, prompt: Any, sampling_params: Any, request_id: str, *, priority: int
    ) -> AsyncGenerator[FakeOutput, None]:
        if (error := self.error(request_id)) is not None:
            raise error
        self.asked[request_id] = prompt, sampling_params, priority
        queue = self._queues[request_id] = asyncio.Queue()
        self._made[request_id] = 0
        try:
            while True:
                output = await queue.get()
                if isinstance(output, Exception):
                    raise output
                yield output
                if output.outputs[0].finish_reason:
                    return
        except (asyncio.CancelledError, GeneratorExit):
            self.aborted.append(request_id)
            raise
        finally:
            del self._queues[request_id]

    def step(self, prefill_tokens: int = 0) -> None:
        """A token for everybody, and what it took."""
        for request_id, queue in self._queues.items():
            self._made[request_id] = made = self._made[request_id] + 1
            limit = self.asked[request_id][1]["max_tokens"]
            queue.put_nowait(FakeOutput([FakeCompletion([99 + made], "length" if made == limit else None)]))
        news = StepNews(0, prefill_tokens, len(self._queues), 0.01)
        self.relay.listener(Stats(len(self._queues), 0.5, 0, news))

    def tell(self, request_id: str, output: Any) -> None:
        self._queues[request_id].put_nowait(output)

    def die(self) -> None:
        self.errored = True
        for queue in self._queues.values():
            queue.put_nowait(RuntimeError("EngineCore encountered an issue"))

    def shutdown(self) -> None:
        self.is_shut_down = True


class FakeFeed:
    """Tells the KV events that a test has."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[Sequence[KvEvent]] = asyncio.Queue()

    def __len__(self) -> int:
        return 3

    async def run(self, on_events: Callable[[Sequence[KvEvent]], None]) -> None:
        while True:
            on_events(await self.heard.get())


def launched(vllm: FakeVllm, feed: Any = None) -> Launched:
    """As if it had been launched; parameters stay the fields that they would be made of, with the grammar added."""

    def make_params(fields: dict[str, Any], grammar: str | None) -> dict[str, Any]:
        return {**fields, "grammar": grammar}

    return Launched(
        vllm, INFO, make_params, feed or FakeFeed(), vllm.relay, tempfile.TemporaryDirectory(), (ValueError,)
    )
