"""From a decoded body to an `Ask`: the two REST surfaces, each with its own words for prompt and log probabilities."""

from collections.abc import Sequence
from typing import Any

from armature.openai.errors import invalid, unsupported
from armature.openai.extensions import hints_from, session_from
from armature.openai.rules import (
    MAX_TOP_LOGPROBS,
    Ask,
    ChatPrompt,
    Prompt,
    TextPrompt,
    TokenPrompt,
    check_ranges,
    check_stop,
    check_streamed,
    refuse_unsupported,
    sampling_of,
)
from armature.openai.schema import ChatBody, CompletionBody, ContentPart, Message
from armature.openai.structured import grammar_of
from armature.openai.tools import ToolUse, rendered_call, tools_of
from armature.v1.common_pb2 import SamplingParams

DEFAULT_COMPLETION_TOKENS = 16
"""What the OpenAI API gives to /v1/completions without `max_tokens`."""
MAX_COMPLETIONS = 1024
"""Answers of one request, to all its prompts."""

# Templates know `system`; `developer` is OpenAI's newer word for it.
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
NO_EFFORT = "none"
"""The `reasoning_effort` of an answer that is not thought about."""
THINKING_VARIABLES = ("enable_thinking", "thinking")
"""By which chat templates are told whether the model is to think before it answers."""

_TEMPLATE_OWN = frozenset({"messages", "add_generation_prompt", "tools", "documents"})


def chat_ask(body: ChatBody, session_header: str = "") -> Ask:
    """Check a chat request. `session_header` names its conversation if the body does not.

    Raises:
        ApiError: 400 that names the field.
    """
    refuse_unsupported(body)
    check_streamed(body)
    sampling = sampling_of(body)
    grammar, grammar_field = grammar_of(body)
    for name, value in (("best_of", body.best_of not in (None, 1)), ("echo", body.echo)):
        if value:
            raise unsupported(name, "only /v1/completions knows it")
    limits = {name: getattr(body, name) for name in ("max_tokens", "max_completion_tokens", "top_logprobs")}
    check_ranges(limits)
    if body.top_logprobs and not body.logprobs:
        raise invalid("top_logprobs", 'only possible with "logprobs": true')
    sampling.logprobs = bool(body.logprobs)
    sampling.top_logprobs = body.top_logprobs or 0
    tools = tools_of(body.tools, body.tool_choice, body.parallel_tool_calls)
    return Ask(
        model=body.model,
        prompt=ChatPrompt(rendered_messages(body.messages), _template_variables(body, tools)),
        prompt_field="messages",
        sampling=sampling,
        max_tokens=body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens,
        stop=check_stop(body.stop),
        include_info=body.armature is not None and body.armature.include_info,
        session_id=session_from(body.armature, body.nvext, body.prompt_cache_key, session_header),
        hints=hints_from(body.armature, body.nvext),
        num_answers=body.n or 1,
        grammar=grammar,
        grammar_field=grammar_field,
        tools=tools,
    )


def completion_asks(body: CompletionBody, session_header: str = "") -> list[Ask]:
    """Check a completion request, as `chat_ask` does: an ask for each of its prompts.

    Raises:
        ApiError: 400 that names the field.
    """
    refuse_unsupported(body)
    for name, value in (("tools", body.tools), ("tool_choice", body.tool_choice)):
        if value not in (None, [], "none", "auto"):
            raise unsupported(name, "only chats have tools; use /v1/chat/completions")
    check_streamed(body)
    sampling = sampling_of(body)
    grammar, grammar_field = grammar_of(body)
    if body.logprobs is not None:
        if not 0 <= body.logprobs <= MAX_TOP_LOGPROBS:
            raise invalid("logprobs", f"must be between 0 and {MAX_TOP_LOGPROBS}, not {body.logprobs}")
        sampling.logprobs = True
        sampling.top_logprobs = body.logprobs
        if body.echo:
            sampling.prompt_logprobs = max(body.logprobs, sampling.prompt_logprobs)
    num_answers = _num_answers(body)
    # The best are told by their tokens' log probabilities.
    sampling.logprobs = sampling.logprobs or num_answers > (body.n or 1)
    prompts = _prompts(body.prompt)
    if len(prompts) * num_answers > MAX_COMPLETIONS:
        raise invalid("prompt", f"at most {MAX_COMPLETIONS} answers are possible, with n to each prompt")
    return [
        Ask(
            model=body.model,
            prompt=prompt,
            prompt_field=field,
            sampling=_copy(sampling),
            max_tokens=_max_tokens(body),
            stop=check_stop(body.stop),
            include_info=body.armature is not None and body.armature.include_info,
            session_id=session_from(body.armature, body.nvext, body.prompt_cache_key, session_header),
            hints=hints_from(body.armature, body.nvext),
            num_answers=num_answers,
            grammar=grammar,
            grammar_field=grammar_field,
        )
        for field, prompt in prompts.items()
    ]


def _max_tokens(body: CompletionBody) -> int:
    """None at all are wanted of somebody who only repeats the prompt."""
    if body.max_tokens == 0 and (body.echo or body.prompt_logprobs is not None):
        return 0
    check_ranges({"max_tokens": body.max_tokens})
    return DEFAULT_COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens


def _copy(sampling: SamplingParams) -> SamplingParams:
    copied = SamplingParams()
    copied.CopyFrom(sampling)
    return copied


def _num_answers(body: CompletionBody) -> int:
    wanted = body.n or 1
    if body.best_of is None:
        return wanted
    if body.best_of < wanted:
        raise invalid("best_of", f"must not be below n ({wanted}), is {body.best_of}")
    if body.best_of > wanted and body.stream:
        raise invalid("best_of", 'not possible with "stream": true: the best are known when all are complete')
    return body.best_of


def rendered_messages(messages: Sequence[Message], field: str = "messages") -> list[dict[str, Any]]:
    """A chat as templates expect it; `field` is what the client calls it.

    Raises:
        ApiError: 400 that names the field.
    """
    if not messages:
        raise invalid(field, "at least one message is needed")
    called: dict[str, str] = {}
    return [_message(f"{field}[{index}]", message, called) for index, message in enumerate(messages)]


def _message(where: str, message: Message, called: dict[str, str]) -> dict[str, Any]:
    """A message as templates expect it. `called` has the functions of earlier calls by call id, and gets new ones."""
    if message.role == "function":
        raise unsupported(f"{where}.role", "send the result as a message with role tool and the call's tool_call_id")
    role = ROLES.get(message.role)
    if role is None:
        raise invalid(f"{where}.role", f"must be one of {', '.join(ROLES)}, not '{message.role[:40]}'")
    if message.function_call:
        raise unsupported(f"{where}.function_call", "use tool_calls instead")
    if message.audio:
        raise unsupported(f"{where}.audio", "not implemented; leave it out")
    may_be_empty = role == "assistant" and bool(message.tool_calls)
    content = message.content if message.content is not None or role != "assistant" else message.refusal
    rendered: dict[str, Any] = {"role": role, "content": _content(where, content, may_be_empty)}
    name = message.name
    if role == "tool":
        if not message.tool_call_id:
            raise invalid(f"{where}.tool_call_id", "must be the id of the call that this is the result of")
        rendered["tool_call_id"] = message.tool_call_id
        name = name or called.get(message.tool_call_id)
    if name is not None:
        rendered["name"] = name
    if role == "assistant":
        rendered |= _said_otherwise(message, called)
    return rendered


def _said_otherwise(message: Message, called: dict[str, str]) -> dict[str, Any]:
    """What an assistant's message has besides its content; templates ask whether the keys are there."""
    rendered: dict[str, Any] = {}
    if message.reasoning_content:
        rendered["reasoning_content"] = message.reasoning_content
    if message.tool_calls:
        rendered["tool_calls"] = [
            rendered_call(call.id, call.function.name, call.function.arguments) for call in message.tool_calls
        ]
        called.update({call.id: call.function.name for call in message.tool_calls})
    return rendered


def _content(where: str, content: str | list[ContentPart] | None, may_be_empty: bool) -> str:
    if isinstance(content, str):
        return content
    if not content and may_be_empty:
        return ""
    if not content:
        raise invalid(f"{where}.content", "must be a string or a list of text parts")
    texts: list[str] = []
    for index, part in enumerate(content):
        if part.type not in ("text", "refusal"):
            raise unsupported(
                f"{where}.content[{index}].type", f"only text parts are implemented, not '{part.type[:40]}'"
            )
        text = part.text if part.type == "text" else part.refusal
        if text is None:
            raise invalid(f"{where}.content[{index}].{part.type}", "a text part needs a text")
        texts.append(text)
    return "\n".join(texts)


def _template_variables(body: ChatBody, tools: ToolUse) -> dict[str, Any]:
    variables = dict(body.chat_template_kwargs or {})
    for name in variables:
        if name in _TEMPLATE_OWN or not name.isidentifier():
            raise invalid("chat_template_kwargs", f"'{name[:40]}' is not a variable that a request may set")
    if body.reasoning_effort is not None:
        variables["reasoning_effort"] = body.reasoning_effort
    if body.reasoning_effort == NO_EFFORT:
        variables = dict.fromkeys(THINKING_VARIABLES, False) | variables
    if tools.definitions:
        variables["tools"] = tools.definitions
    return variables


def _prompts(prompt: str | list[str | int | list[int]]) -> dict[str, Prompt]:
    """A text, token ids, or a list of these, by what the client calls each."""
    if isinstance(prompt, list) and prompt and not all(isinstance(item, int) for item in prompt):
        if len(prompt) == 1:
            return {"prompt": _prompt("prompt", prompt[0])}
        if len(prompt) > MAX_COMPLETIONS:
            raise invalid("prompt", f"at most {MAX_COMPLETIONS} prompts are possible, not {len(prompt)}")
        fields = [f"prompt[{index}]" for index in range(len(prompt))]
        return {field: _prompt(field, one) for field, one in zip(fields, prompt, strict=True)}
    return {"prompt": _prompt("prompt", prompt)}  # pyright: ignore[reportArgumentType]


def _prompt(field: str, prompt: str | int | list[int]) -> Prompt:
    if isinstance(prompt, int):
        raise invalid(field, "must be a text or a list of token ids, like the others")
    if not prompt:
        raise invalid(field, "must not be empty")
    return TextPrompt(prompt) if isinstance(prompt, str) else TokenPrompt(prompt)
