"""Chats with tools in the words of `armature.v1.Inference`."""

import json
from collections.abc import Iterable
from typing import Any

from armature.openai.asks import rendered_messages
from armature.openai.errors import invalid
from armature.openai.parsers.events import AnswerEvent, Content, Reasoning, ToolCallArguments, ToolCallStart
from armature.openai.rules import ChatPrompt
from armature.openai.schema import CalledFunction, Message
from armature.openai.schema import ToolCall as CalledTool
from armature.openai.tools import ToolUse, tools_of
from armature.v1.inference_pb2 import (
    TOOL_CHOICE_NONE,
    TOOL_CHOICE_REQUIRED,
    ChatMessage,
    ChatMessages,
    GenerateResponse,
    Tool,
)

_CHOICES = {TOOL_CHOICE_NONE: "none", TOOL_CHOICE_REQUIRED: "required"}


def chat_in(chat: ChatMessages) -> ChatPrompt:
    """The chat to render.

    Raises:
        ApiError: 400 that names the field.
    """
    messages = rendered_messages([_message(message) for message in chat.messages], "chat.messages")
    tools = tools_in(chat).definitions
    return ChatPrompt(messages, {"tools": tools} if tools else {})


def tools_in(chat: ChatMessages) -> ToolUse:
    """The functions that it offers.

    Raises:
        ApiError: 400 that names the field.
    """
    definitions = [_definition(index, tool) for index, tool in enumerate(chat.tools)]
    choice: Any = _CHOICES.get(chat.tool_choice)
    if chat.must_call:
        choice = {"type": "function", "function": {"name": chat.must_call}}
    return tools_of(definitions, choice, not chat.single_tool_call)


def tell(events: Iterable[AnswerEvent], response: GenerateResponse) -> None:
    """Put what a piece of an answer says into its response."""
    for event in events:
        match event:
            case Content(text):
                response.text += text
            case Reasoning(text):
                response.reasoning += text
            case ToolCallStart(index, name, call_id):
                response.tool_calls.add(index=index, id=call_id or "", name=name)
            case ToolCallArguments(index, text):
                calls = response.tool_calls
                part = calls[-1] if calls and calls[-1].index == index else calls.add(index=index)
                part.arguments += text


def _message(message: ChatMessage) -> Message:
    calls = [CalledTool(call.id, CalledFunction(call.name, call.arguments)) for call in message.tool_calls]
    return Message(
        message.role,
        message.content,
        name=message.name or None,
        tool_calls=calls or None,
        tool_call_id=message.tool_call_id or None,
        reasoning_content=message.reasoning or None,
    )


def _definition(index: int, tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    if tool.parameters_json:
        try:
            function["parameters"] = json.loads(tool.parameters_json)
        except (ValueError, RecursionError) as error:
            raise invalid(f"chat.tools[{index}].parameters_json", f"it is not valid JSON: {error}") from None
    if tool.is_strict:
        function["strict"] = True
    return {"type": "function", "function": function}
