"""`/v1/embeddings`, `/tokenize` and `/detokenize`: one body in, one answer out."""

import asyncio
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import msgspec

from armature.openai.schema import BodyDecoder
from armature.openai.serving.core import ServingCore
from armature.openai.serving.endpoints.endpoint import CLIENT_LEFT, Call, Endpoint
from armature.openai.texts import (
    DetokenizeBody,
    EmbeddingBody,
    TokenizeBody,
    embedding_answer,
    embedding_inputs,
    tokenize_prompt,
)

PAUSE_AFTER_BYTES = 1 << 18
"""Encoding goes on after others had their turn."""


class _OneAnswer(Endpoint):
    """Answers at once and whole. A client that leaves cancels the work."""

    def __init__(self, core: ServingCore, route: str, body: type[msgspec.Struct]) -> None:
        super().__init__(core, route)
        self._decoder = BodyDecoder(body)

    async def answer(self, call: Call, data: bytes) -> int:
        body = self._decoder.decode(data)
        async with call.exchange:
            parts: list[bytes] = []
            fresh_bytes = 0
            for part in await self.make(call, body):
                parts.append(part)
                fresh_bytes += len(part)
                if fresh_bytes > PAUSE_AFTER_BYTES:
                    fresh_bytes = 0
                    await asyncio.sleep(0)
            await call.exchange.send_json(200, b"".join(parts))
            return 200
        return CLIENT_LEFT  # the exchange has swallowed the cancellation

    @abstractmethod
    async def make(self, call: Call, body: Any) -> Iterator[bytes]:
        """The answer's JSON, in parts."""


class EmbeddingsEndpoint(_OneAnswer):
    def __init__(self, core: ServingCore) -> None:
        super().__init__(core, "/v1/embeddings", EmbeddingBody)

    async def make(self, call: Call, body: EmbeddingBody) -> Iterator[bytes]:
        inputs = embedding_inputs(body.input)
        made = await self._core.texts.embed(
            call.request_id, body.model, inputs, dimensions=body.dimensions, received_s=call.started_s
        )
        return embedding_answer(body.model, made.embeddings, made.prompt_tokens, body.encoding_format)


class TokenizeEndpoint(_OneAnswer):
    def __init__(self, core: ServingCore) -> None:
        super().__init__(core, "/tokenize", TokenizeBody)

    async def make(self, call: Call, body: TokenizeBody) -> Iterator[bytes]:
        prompt = tokenize_prompt(body)
        is_text = body.messages is None  # a chat template writes the special tokens itself
        special = is_text if body.add_special_tokens is None else body.add_special_tokens
        made = await self._core.texts.tokenize(
            body.model, prompt, add_special_tokens=special, with_strings=bool(body.return_token_strs)
        )
        answer = {
            "count": len(made.token_ids),
            "max_model_len": made.context_length,
            "tokens": made.token_ids,
            "token_strs": made.token_strings if body.return_token_strs else None,
        }
        return iter((msgspec.json.encode(answer),))


class DetokenizeEndpoint(_OneAnswer):
    def __init__(self, core: ServingCore) -> None:
        super().__init__(core, "/detokenize", DetokenizeBody)

    async def make(self, call: Call, body: DetokenizeBody) -> Iterator[bytes]:
        text = await self._core.texts.detokenize(body.model, body.tokens)
        return iter((msgspec.json.encode({"prompt": text}),))
