"""Embeds, tokenizes and detokenizes for every surface."""

import asyncio
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from armature.openai.errors import context_exceeded, invalid, unsupported
from armature.openai.rules import ChatPrompt, TextPrompt, TokenPrompt, check_token_ids
from armature.openai.serving.catalog import ServedModel
from armature.openai.serving.embedder import Embedder, Order
from armature.openai.serving.metrics import of_model
from armature.openai.tenancy.admission import Admission
from armature.openai.texts import check_dimensions

MAX_COMPONENTS = 1 << 22
"""Of all embeddings of one answer: 16 MiB, and some 80 MiB as JSON."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """What has become of inputs."""

    embeddings: list[bytes]
    """Little-endian 32-bit floats."""
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Tokenized:
    token_ids: list[int]
    token_strings: list[str]
    """As they stand in the vocabulary; empty if nobody asked."""
    context_length: int


class Desk(Protocol):
    """What all surfaces share; `ServingCore` is one."""

    def admission(self) -> Admission: ...
    async def model_named(self, name: str) -> ServedModel: ...


class Texts:
    """For the callers of requests that have been admitted."""

    def __init__(self, desk: Desk, embedder: Embedder) -> None:
        self._desk = desk
        self._embedder = embedder
        self.on_embedded: list[Callable[[str, str, int], None]] = []
        """Called with tenant, model and tokens of every request that was embedded."""

    async def embed(
        self,
        request_id: str,
        name: str,
        inputs: Sequence[TextPrompt | TokenPrompt],
        *,
        dimensions: int | None = None,
        received_s: float,
    ) -> Embedded:
        """Embed every input.

        Raises:
            ApiError: one of them can't be embedded, or nobody can do it.
        """
        model = await self._desk.model_named(name)
        size = model.card.embedding_size
        if not size:
            raise unsupported("model", f"the workers of '{name}' compute no embeddings; choose another model")
        check_dimensions(dimensions, size)
        if len(inputs) * size > MAX_COMPONENTS:
            raise invalid("input", f"at most {MAX_COMPONENTS // size} texts are possible at once with this model")
        prompts = await asyncio.to_thread(_prompts, model, inputs)
        prompt_tokens = sum(map(len, prompts))
        admission = self._desk.admission()
        await admission.charge(prompt_tokens)
        of_model(model.name).accepted(*map(len, prompts))
        order = Order(request_id, model, prompts, admission.caller.tenant, received_s, admission.timeout_s)
        embeddings = await self._embedder.embed(order)
        admission.used(prompt_tokens)
        for listener in self.on_embedded:
            listener(admission.caller.tenant, name, prompt_tokens)
        return Embedded(embeddings, prompt_tokens)

    async def tokenize(
        self, name: str, prompt: TextPrompt | ChatPrompt, *, add_special_tokens: bool, with_strings: bool
    ) -> Tokenized:
        """The tokens of a text, or of a chat as the model's template renders it.

        Raises:
            ApiError: there is no such model, it has no template, or the text is longer than any context.
        """
        model = await self._desk.model_named(name)
        token_ids = await asyncio.to_thread(_tokenize, model, prompt, add_special_tokens)
        strings: list[str] = []
        if with_strings:
            to_token = model.tokenizer.vocabulary.tokenizer.id_to_token
            strings = [to_token(token_id) or "" for token_id in token_ids]
        return Tokenized(token_ids, strings, model.card.context_length)

    async def detokenize(self, name: str, token_ids: Sequence[int]) -> str:
        """The text of tokens, special ones included.

        Raises:
            ApiError: there is no such model, or an id is none of its tokens.
        """
        model = await self._desk.model_named(name)
        check_token_ids("tokens", token_ids, model.card.vocab_size)
        decode = model.tokenizer.vocabulary.tokenizer.decode
        return await asyncio.to_thread(decode, list(token_ids), skip_special_tokens=False)


def _tokenize(model: ServedModel, prompt: TextPrompt | ChatPrompt, add_special_tokens: bool) -> list[int]:
    text = model.tokenizer.text_of(model.name, prompt)
    _check_text("prompt" if isinstance(prompt, TextPrompt) else "messages", text, model)
    tokenizer = model.tokenizer.vocabulary.tokenizer
    return tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids


def _prompts(model: ServedModel, inputs: Sequence[TextPrompt | TokenPrompt]) -> list["array[int]"]:
    """The inputs' tokens. Texts are tokenized together, on as many cores as there are."""
    card, several = model.card, len(inputs) > 1
    texts = [one.text for one in inputs if isinstance(one, TextPrompt)]
    for text in texts:
        _check_text("input", text, model)
    encoded = iter(model.tokenizer.vocabulary.tokenizer.encode_batch_fast(texts, add_special_tokens=True))
    prompts: list[array[int]] = []
    for index, one in enumerate(inputs):
        field = f"input[{index}]" if several else "input"
        token_ids = next(encoded).ids if isinstance(one, TextPrompt) else one.token_ids
        if not token_ids:
            raise invalid(field, "it has no tokens")
        if len(token_ids) >= card.context_length:
            raise context_exceeded(field, len(token_ids), card.context_length)
        check_token_ids(field, token_ids, card.vocab_size)
        prompts.append(array("I", token_ids))
    return prompts


def _check_text(field: str, text: str, model: ServedModel) -> None:
    """Refuse what no context holds before time and memory go into its tokens."""
    limit = model.card.context_length
    if len(text) > limit and (least := model.tokenizer.least_tokens(text)) >= limit:
        raise context_exceeded(field, least, limit, at_least=True)
