"""The body of `/v1/responses` and the items of its input, as msgspec structs.

Items are kept as they came, since they are shown and stored again; the structs here say what is read of them. Fields
that stand here and would change the answer's meaning, but are not implemented, are refused by `asks`.
"""

from typing import Any

import msgspec

from armature.openai.errors import invalid, unsupported
from armature.openai.extensions import ArmatureOptions, NvExt
from armature.openai.schema import type_error

Item = dict[str, Any]


class Format(msgspec.Struct):
    type: str
    name: str | None = None
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class Text(msgspec.Struct):
    format: Format | None = None


class Reasoning(msgspec.Struct):
    effort: str | None = None


class ResponseBody(msgspec.Struct, kw_only=True):
    """`POST /v1/responses`. What stands under OpenAI's fields are the extensions that chat takes too."""

    model: str
    input: str | list[Item] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    stream: bool | None = None
    background: bool | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    include: list[str] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: Text | None = None
    reasoning: Reasoning | None = None
    metadata: dict[str, str] | None = None
    truncation: str | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    conversation: Any = None
    prompt: Any = None
    context_management: Any = None
    moderation: Any = None

    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    logit_bias: dict[str, float] | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    armature: ArmatureOptions | None = None
    nvext: NvExt | None = None


class Part(msgspec.Struct):
    type: str
    text: str | None = None
    refusal: str | None = None


class MessageItem(msgspec.Struct):
    role: str
    content: str | list[Part]


class FunctionCallItem(msgspec.Struct):
    call_id: str
    name: str
    arguments: str


class FunctionCallOutputItem(msgspec.Struct):
    call_id: str
    output: str | list[Part]


class ReasoningItem(msgspec.Struct):
    content: list[Part] | None = None


KnownItem = MessageItem | FunctionCallItem | FunctionCallOutputItem | ReasoningItem

_KINDS: dict[str, type[KnownItem]] = {
    "message": MessageItem,
    "function_call": FunctionCallItem,
    "function_call_output": FunctionCallOutputItem,
    "reasoning": ReasoningItem,
}


def known_item(where: str, item: Item) -> KnownItem:
    """An item as what its type says; `where` is what the client calls it.

    Raises:
        ApiError: 400 that names the field.
    """
    kind = item.get("type", "message")
    if not isinstance(kind, str) or kind not in _KINDS:
        known = ", ".join(_KINDS)
        raise unsupported(f"{where}.type", f"only {known} are implemented, not '{str(kind)[:40]}'")
    try:
        return msgspec.convert(item, _KINDS[kind])
    except msgspec.ValidationError as error:
        raise type_error(str(error), where) from None


def text_of(where: str, content: str | list[Part]) -> str:
    """The text of some content parts, one a line.

    Raises:
        ApiError: 400, there is something else than text.
    """
    if isinstance(content, str):
        return content
    texts: list[str] = []
    for index, part in enumerate(content):
        text = part.refusal if part.type == "refusal" else part.text
        if part.type not in _TEXT_PARTS:
            raise unsupported(f"{where}[{index}].type", f"only text is implemented, not '{part.type[:40]}'")
        if text is None:
            raise invalid(f"{where}[{index}].text", "a text part needs a text")
        texts.append(text)
    return "\n".join(texts)


_TEXT_PARTS = frozenset({"input_text", "output_text", "text", "reasoning_text", "summary_text", "refusal"})
