"""Content blocks as the messages that a chat template knows."""

from collections.abc import Sequence

import msgspec

from armature.openai.anthropic.schema import Block, InputMessage
from armature.openai.errors import invalid, unsupported
from armature.openai.schema import CalledFunction, Message, ToolCall

ROLES = ("user", "assistant", "system")


def system_text(system: str | list[Block] | None) -> str:
    """The text of a system prompt.

    Raises:
        ApiError: 400 that names the field.
    """
    return _text("system", system or "")


def chat_messages(messages: Sequence[InputMessage]) -> list[Message]:
    """The conversation, which must end with somebody else than the assistant.

    Raises:
        ApiError: 400 that names the field.
    """
    if not messages:
        raise invalid("messages", "at least one message is needed")
    if messages[-1].role == "assistant":
        fix = "the last message must be the user's: an answer that is begun can't be continued"
        raise unsupported(f"messages[{len(messages) - 1}].role", fix)
    chat: list[Message] = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if message.role not in ROLES:
            raise invalid(f"{where}.role", f"must be one of {', '.join(ROLES)}, not '{message.role[:40]}'")
        if isinstance(message.content, str):
            chat.append(Message(message.role, message.content))
        elif message.role == "assistant":
            chat.append(_said(f"{where}.content", message.content))
        else:
            chat.extend(_heard(f"{where}.content", message.role, message.content))
    return chat


def _heard(where: str, role: str, blocks: list[Block]) -> list[Message]:
    """A user's message: the results of tools are messages of their own, in their places."""
    messages: list[Message] = []
    texts: list[str] = []
    for index, block in enumerate(blocks):
        if block.type != "tool_result":
            texts.append(_text_of(f"{where}[{index}]", block))
            continue
        if texts:
            messages.append(Message(role, "\n".join(texts)))
            texts = []
        if not block.tool_use_id:
            raise invalid(f"{where}[{index}].tool_use_id", "a result needs the id of the call that it belongs to")
        result = _text(f"{where}[{index}].content", block.content or "")
        messages.append(
            Message("tool", f"Error: {result}" if block.is_error else result, tool_call_id=block.tool_use_id)
        )
    if texts or not messages:
        messages.append(Message(role, "\n".join(texts)))
    return messages


def _said(where: str, blocks: list[Block]) -> Message:
    """An assistant's message: what it thought, said and called. Redacted thinking can't be read and is left out."""
    thoughts: list[str] = []
    texts: list[str] = []
    calls: list[ToolCall] = []
    for index, block in enumerate(blocks):
        if block.type == "tool_use":
            if not block.id or not block.name:
                raise invalid(f"{where}[{index}]", "a tool_use block needs an id and a name")
            arguments = msgspec.json.encode(block.input or {}).decode()
            calls.append(ToolCall(block.id, CalledFunction(block.name, arguments)))
        elif block.type == "thinking":
            thoughts.append(block.thinking or "")
        elif block.type != "redacted_thinking":
            texts.append(_text_of(f"{where}[{index}]", block))
    text, reasoning = "\n".join(texts), "\n".join(thoughts)
    return Message("assistant", text, tool_calls=calls or None, reasoning_content=reasoning or None)


def _text(where: str, content: str | list[Block]) -> str:
    if isinstance(content, str):
        return content
    return "\n".join([_text_of(f"{where}[{index}]", block) for index, block in enumerate(content)])


def _text_of(where: str, block: Block) -> str:
    if block.type == "search_result":
        return _titled(block, _text(f"{where}.content", block.content or ""))
    if block.type == "document":
        match block.source:
            case {"type": "text", "data": str(text)}:
                return _titled(block, text)
            case _:
                raise unsupported(
                    f"{where}.source.type", 'only documents as plain text, {"type": "text"}, are known here'
                )
    if block.type != "text":
        raise unsupported(f"{where}.type", f"only text is implemented here, not '{block.type[:40]}'")
    if block.text is None:
        raise invalid(f"{where}.text", "a text block needs a text")
    return block.text


def _titled(block: Block, text: str) -> str:
    return f"{block.title}\n{text}" if block.title else text
