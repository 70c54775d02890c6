"""Collects what an engine tells, so that a test can await the end of a request or a condition."""

import asyncio
from collections import defaultdict
from collections.abc import Callable
from itertools import chain

from armature.scheduling.request import Request, Reserved, Staged, StepOutput, TokenOutput

DEADLINE_S = 20.0


class Listener:
    """Pass `hear` to `Engine.start`. Checks that output indexes follow one another."""

    def __init__(self) -> None:
        self.outputs: list[StepOutput] = []
        self.tokens: dict[str, list[int]] = defaultdict(list)
        self.ends: dict[str, TokenOutput] = {}
        self._heard = asyncio.Event()

    def hear(self, output: StepOutput) -> None:
        self.outputs.append(output)
        for told in output.tokens:
            assert told.request_id not in self.ends, "a request was answered after its end"
            assert told.output_index == len(self.tokens[told.request_id]), "a token was repeated or left out"
            self.tokens[told.request_id] += told.token_ids
            if told.finish_reason is not None:
                self.ends[told.request_id] = told
        self._heard.set()

    @property
    def reserved(self) -> list[Reserved]:
        return list(chain.from_iterable(output.reserved for output in self.outputs))

    @property
    def staged(self) -> list[Staged]:
        return list(chain.from_iterable(output.staged for output in self.outputs))

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until what was heard fulfils `condition`."""
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                self._heard.clear()
                await self._heard.wait()

    async def end_of(self, *requests: Request) -> list[TokenOutput]:
        await self.until(lambda: all(request.request_id in self.ends for request in requests))
        return [self.ends[request.request_id] for request in requests]
