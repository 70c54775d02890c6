"""Bodies and answers of the routes that take text and make none: embeddings, tokenize, detokenize.

Embeddings are OpenAI's, the other two vLLM's. What a body means is checked here; what only a model can tell, by
whoever serves it.
"""

import base64
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import msgspec
import numpy as np

from armature.openai.asks import chat_ask
from armature.openai.errors import invalid, unsupported
from armature.openai.rules import ChatPrompt, TextPrompt, TokenPrompt
from armature.openai.schema import ChatBody, Message

MAX_INPUTS = 2048
"""OpenAI's own bound."""

_encode = msgspec.json.Encoder().encode


class EmbeddingBody(msgspec.Struct, kw_only=True):
    model: str
    input: str | list[str | int | list[int]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None


class TokenizeBody(msgspec.Struct, kw_only=True):
    model: str
    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    return_token_strs: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: Any = None


class DetokenizeBody(msgspec.Struct, kw_only=True):
    model: str
    tokens: list[int]


def embedding_inputs(given: str | list[str | int | list[int]]) -> Sequence[TextPrompt | TokenPrompt]:
    """What is to be embedded: one text, one list of tokens, or several of either.

    Raises:
        ApiError: 400, there is nothing, too much, or a mixture.
    """
    if isinstance(given, str):
        given = [given]
    if given and all(isinstance(item, int) for item in given):
        return [TokenPrompt(given)]  # pyright: ignore[reportArgumentType]
    check_number(len(given))
    inputs: list[TextPrompt | TokenPrompt] = []
    for item in given:
        if isinstance(item, int):
            raise invalid("input", "texts and token ids can't stand in one list")
        inputs.append(TextPrompt(item) if isinstance(item, str) else TokenPrompt(item))
    return inputs


def check_number(inputs: int) -> None:
    """Raise unless so many inputs are possible at once."""
    if not 1 <= inputs <= MAX_INPUTS:
        raise invalid("input", f"1 to {MAX_INPUTS} texts are possible at once, not {inputs}")


def check_dimensions(dimensions: int | None, embedding_size: int) -> None:
    """Raise unless the model's own size is asked for: cut to fewer components, its embeddings would mean little."""
    if dimensions is not None and dimensions != embedding_size:
        raise unsupported("dimensions", f"this model's embeddings have {embedding_size} components; leave it out")


def embedding_answer(
    model: str, embeddings: Sequence[bytes], prompt_tokens: int, encoding_format: str | None
) -> Iterator[bytes]:
    """The body in pieces, since all of them can be megabytes. Embeddings are little-endian 32-bit floats."""
    yield b'{"object":"list","data":['
    for index, packed in enumerate(embeddings):
        shown: str | list[float]
        shown = base64.b64encode(packed).decode() if encoding_format == "base64" else floats_of(packed)
        yield (b"," if index else b"") + _encode({"object": "embedding", "index": index, "embedding": shown})
    usage = {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens}
    yield b'],"model":' + _encode(model) + b',"usage":' + _encode(usage) + b"}"


def floats_of(packed: bytes) -> list[float]:
    """An embedding's components."""
    return np.frombuffer(packed, dtype="<f4").tolist()


def tokenize_prompt(body: TokenizeBody) -> TextPrompt | ChatPrompt:
    """The text or chat to tokenize.

    Raises:
        ApiError: 400, there is neither or both, or the chat is not one.
    """
    if (body.prompt is None) == (body.messages is None):
        raise invalid("prompt", "either 'prompt' or 'messages' must be given")
    if body.add_generation_prompt is False:
        raise unsupported("add_generation_prompt", "chats are rendered for the assistant's next turn; leave it out")
    if body.messages is None:
        return TextPrompt(body.prompt or "")
    chat = ChatBody(
        model=body.model,
        messages=body.messages,
        chat_template_kwargs=body.chat_template_kwargs,
        tools=body.tools,
    )
    prompt = chat_ask(chat).prompt
    assert isinstance(prompt, ChatPrompt)
    return prompt
