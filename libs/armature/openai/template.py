"""Chat templates: Jinja2 in a sandbox, with the functions that model authors expect.

A template is code from a model's directory, so it gets no objects of ours and can't mutate what it is given.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import msgspec
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from armature.openai.errors import ApiError, unsupported
from armature.openai.tools import with_text_arguments

_ABSENT: dict[str, Any] = {"tools": None, "documents": None}
"""Templates may ask whether these are none without asking whether they are defined."""


class ChatTemplate:
    """A compiled template. `names` are the special tokens by role (`bos_token`, `eos_token`, ...).

    Raises:
        ValueError: the template does not compile.
    """

    def __init__(self, source: str, names: Mapping[str, str]) -> None:
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise ValueError(f"the chat template does not compile: {error}") from error
        # Of a chain of mappings, as which they come, every rendering would look up each by itself.
        self._template.globals = dict(self._template.globals)
        self._names = dict(names)
        self.source = source

    def render(self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any] | None = None) -> str:
        """The prompt for the assistant's next turn.

        The arguments of tool calls are objects; where that fails they are tried as text, which some templates want.

        Raises:
            ApiError: 400, if the template refuses the messages (roles must alternate, say) or fails on them.
        """
        values = {**self._names, **_ABSENT, **(variables or {}), "messages": messages, "add_generation_prompt": True}
        try:
            return self._template.render(values)
        except TypeError as error:
            if not any("tool_calls" in message for message in messages):
                raise _refusal(error) from None
        except Exception as error:  # a template is foreign code and may raise anything
            raise _refusal(error) from None
        try:
            return self._template.render({**values, "messages": with_text_arguments(messages)})
        except Exception as error:  # a template is foreign code and may raise anything
            raise _refusal(error) from None


def _refusal(error: Exception) -> ApiError:
    message = f"The model's chat template refuses these messages: {str(error) or type(error).__name__}"
    return ApiError(400, message[:500], param="messages", code="invalid_value")


def load_chat_template(directory: Path) -> ChatTemplate | None:
    """The template in a model's directory; None if it has none.

    Raises:
        ValueError: it does not compile.
    """
    config = _read_json(directory / "tokenizer_config.json")
    names = _special_names(_read_json(directory / "special_tokens_map.json") | config)
    separate = directory / "chat_template.jinja"
    if separate.is_file():
        return ChatTemplate(separate.read_text(), names)
    source = config.get("chat_template") or _read_json(directory / "chat_template.json").get("chat_template")
    if isinstance(source, list):  # named templates
        named = {entry["name"]: entry["template"] for entry in source}
        source = named.get("default") or next(iter(named.values()), None)
    return ChatTemplate(source, names) if source else None


def no_chat_template(model: str) -> ApiError:
    return unsupported("messages", f"the model '{model}' has no chat template; use /v1/completions")


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationTag]
    )
    functions: dict[str, Any] = {"raise_exception": _refuse, "strftime_now": _strftime_now}
    environment.globals.update(functions)
    environment.filters["tojson"] = _to_json
    return environment


class _GenerationTag(Extension):
    """`{% generation %}`: marks the assistant's words for training. Here its body is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012 -- as the base class has it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().astimezone().strftime(form)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """Plain JSON: Jinja's own filter escapes for HTML, which no model has been trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _special_names(config: Mapping[str, Any]) -> dict[str, str]:
    """`bos_token` and its like: strings, or objects with `content`."""
    names: dict[str, str] = {}
    for key, value in config.items():
        if key.endswith("_token"):
            content = value.get("content") if isinstance(value, dict) else value
            if isinstance(content, str):
                names[key] = content
    return names


def _read_json(path: Path) -> dict[str, Any]:
    return msgspec.json.decode(path.read_bytes(), type=dict[str, Any]) if path.is_file() else {}
