"""Several answers to one prompt or more: a generation each, their pieces mixed as they come.

The answers to a prompt differ in their seeds, which follow from the request's. A prompt worth sharing is sent once,
and again for the others when its first answer has begun: by then its blocks are in that worker's cache, and the router,
who knows, weighs for each of the others whether to join it there. Sent at once, they would all compute the prompt.
"""

import asyncio
import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace

from armature.openai.answers import Usage
from armature.openai.assembler import Piece
from armature.openai.serving.generation import Generation

WORTH_SHARING_TOKENS = 128
"""Shorter prompts take a step to compute, which is also what waiting for the first answer would take."""
MAX_RUNNING = 64
"""Answers of one request that are made at the same time."""
MAX_PIECES_AHEAD = 64
"""Pieces that wait for the client; beyond, the answers wait too, until their workers' tokens are too many."""
MAX_SCORED_PIECES_AHEAD = 8
"""The same with log probabilities, with which a piece can take 35 KiB."""


class Choices:
    """The answers to one request, those to a prompt together. `pieces` is iterated once, and closed by whoever iterates
    it."""

    def __init__(self, generations: Sequence[Generation]) -> None:
        self.generations = generations

    @property
    def usage(self) -> Usage:
        """Of all answers together; each prompt counts once."""
        if len(self.generations) == 1:
            return self.generations[0].usage
        usages = [generation.usage for generation in self.generations]
        prompts = [one.usage for one in self.generations if not one.job.answer_index]
        return Usage(
            prompt_tokens=sum(usage.prompt_tokens for usage in prompts),
            cached_tokens=sum(usage.cached_tokens for usage in prompts),
            completion_tokens=sum(usage.completion_tokens for usage in usages),
            reasoning_tokens=None
            if usages[0].reasoning_tokens is None
            else sum(usage.reasoning_tokens or 0 for usage in usages),
        )

    def pieces(self) -> AsyncGenerator[Piece, None]:
        """All answers, `index` saying whose a piece is; each one's last piece, and no other, has a finish reason.

        Raises:
            ApiError: one of them can't be served, or not to its end; the others are cancelled.
        """
        return self.generations[0].pieces() if len(self.generations) == 1 else self._mixed()

    async def _mixed(self) -> AsyncGenerator[Piece, None]:
        is_scored = self.generations[0].job.sampling.logprobs
        ahead = MAX_SCORED_PIECES_AHEAD if is_scored else MAX_PIECES_AHEAD
        mixed: asyncio.Queue[Piece | Exception] = asyncio.Queue(ahead)
        turns = _Turns()
        # Not a TaskGroup: a generator that is closed in its midst would leave one with the wrong error.
        running = [asyncio.create_task(self._run(index, mixed, turns)) for index in range(len(self.generations))]
        try:
            unfinished = len(running)
            while unfinished:
                piece = await mixed.get()
                if isinstance(piece, Exception):
                    raise piece
                unfinished -= piece.finish_reason is not None
                yield piece
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _run(self, index: int, mixed: "asyncio.Queue[Piece | Exception]", turns: "_Turns") -> None:
        generation = self.generations[index]
        begun = turns.begun.setdefault(index - generation.job.answer_index, asyncio.Event())
        try:
            if generation.job.answer_index and _is_worth_sharing(self.generations[index - generation.job.answer_index]):
                await begun.wait()
            async with turns.seats, aclosing(generation.pieces()) as pieces:
                async for piece in pieces:
                    begun.set()
                    piece.index = index
                    await mixed.put(piece)
        except Exception as error:  # whoever iterates the pieces is told
            await mixed.put(error)


class _Turns:
    """When the answers of a request may begin."""

    def __init__(self) -> None:
        self.seats = asyncio.Semaphore(MAX_RUNNING)
        self.begun: dict[int, asyncio.Event] = {}
        """By the first answer to a prompt: set with its first piece."""


def _is_worth_sharing(first: Generation) -> bool:
    """What is told of a prompt comes with its first answer, and is shown with all."""
    return len(first.job.prompt) >= WORTH_SHARING_TOKENS or first.job.wants_scores


def best(answers: Sequence[Piece], wanted: int) -> list[Piece]:
    """As many of the answers as are wanted, those with the highest mean log probability of a token first."""
    if len(answers) == wanted:
        return list(answers)
    ranked = sorted(answers, key=_mean_logprob, reverse=True)[:wanted]
    return [replace(answer, index=index) for index, answer in enumerate(ranked)]


def _mean_logprob(answer: Piece) -> float:
    chosen = [token[0][1] for token in answer.tokens]
    return sum(chosen) / len(chosen) if chosen else -math.inf
