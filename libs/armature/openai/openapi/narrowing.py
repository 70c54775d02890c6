"""What the rules allow of what the types do: ranges of numbers, words, and values of fields that are not implemented.

All of it is read from the rules themselves.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from armature.openai.anthropic import messages
from armature.openai.anthropic.asks import REFUSED as MESSAGES_REFUSED
from armature.openai.asks import ROLES
from armature.openai.responses.asks import REFUSED as RESPONSES_REFUSED
from armature.openai.rules import (
    MAX_STOP_CHARACTERS,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKENS,
    MAX_TOP_LOGPROBS,
    RANGES,
    UNSUPPORTED,
)
from armature.openai.tools import FUNCTION_NAME, MAX_TOOLS
from armature.routing.hints import RANGES as HINT_RANGES

Schema = dict[str, Any]

_FALSE: tuple[Any, ...] = (None, False, 0, "", [], {})
_SAMPLED = {name: (one.low, one.high) for name, one in RANGES.items()}
_SAMPLED["max_output_tokens"] = _SAMPLED["max_tokens"]
_NUMBERS: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "ChatBody": _SAMPLED,
    "CompletionBody": {**_SAMPLED, "logprobs": (0, MAX_TOP_LOGPROBS)},
    "ResponseBody": _SAMPLED,
    "MessagesBody": _SAMPLED,
    "HintOptions": HINT_RANGES,
}
"""By type and field."""
_WORDS: Mapping[str, Mapping[str, Iterable[str]]] = {
    "Message": {"role": ROLES},
    "InputMessage": {"role": messages.ROLES},
    "ContentPart": {"type": ("text", "refusal")},
    "ResponseFormat": {"type": ("text", "json_object", "json_schema")},
}
_NEUTRAL = {name: (None, *neutral) for name, neutral, _ in UNSUPPORTED}
_VALUES: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    "ChatBody": {**_NEUTRAL, "best_of": (None, 1), "echo": (None, False)},
    "CompletionBody": _NEUTRAL,
    "ResponseBody": {name: (None, *neutral) for name, neutral, _ in RESPONSES_REFUSED},
    "CountBody": dict.fromkeys((name for name, _ in MESSAGES_REFUSED), _FALSE),
    "MessagesBody": dict.fromkeys((name for name, _ in MESSAGES_REFUSED), _FALSE),
}
"""All that is possible for a field."""
_FUNCTION = {
    "type": "object",
    "properties": {
        "type": {"const": "function"},
        "function": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "pattern": f"^(?:{FUNCTION_NAME.pattern})$"},
                "description": {},
                "parameters": {"anyOf": [{"type": "object"}, {"type": "null"}]},
                "strict": {},
            },
            "required": ["name"],
        },
    },
    "required": ["type", "function"],
}
_TOOLS = {"anyOf": [{"type": "array", "maxItems": MAX_TOOLS, "items": _FUNCTION}, {"enum": [*_FALSE]}]}
_STOP = {"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARACTERS}


def narrow(components: Mapping[str, Schema]) -> None:
    """Change the schemas of types, by name, as far as they are there."""
    for name, schema in components.items():
        properties = schema.get("properties", {})
        for field, (low, high) in _NUMBERS.get(name, {}).items():
            _set_range(properties.get(field, {}), low, high)
        for field, words in _WORDS.get(name, {}).items():
            properties[field] = {"enum": [*words]}
        for field, values in _VALUES.get(name, {}).items():
            properties[field] = {"enum": [*values], "default": None}
        for field in ("stop", "stop_sequences"):
            for kind in _kinds(properties.get(field, {})):
                _set_stops(kind)
        for kind in _kinds(properties.get("stop_token_ids", {})):
            if kind.get("type") == "array":
                kind |= {"maxItems": MAX_STOP_TOKENS, "items": {"type": "integer", "minimum": 0}}
    if "ChatBody" in components:
        components["ChatBody"]["properties"]["tools"] = _TOOLS


def _set_range(schema: Schema, low: float, high: float) -> None:
    for kind in _kinds(schema):
        if kind.get("type") in ("integer", "number"):
            whole = kind["type"] == "integer"
            kind["minimum"], kind["maximum"] = (int(low), int(high)) if whole else (low, high)


def _set_stops(kind: Schema) -> None:
    if kind.get("type") == "string":
        kind |= _STOP
    elif kind.get("type") == "array":
        kind |= {"items": _STOP, "maxItems": MAX_STOP_STRINGS}


def _kinds(schema: Schema) -> Iterable[Schema]:
    return schema.get("anyOf", (schema,))
