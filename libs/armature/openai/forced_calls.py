"""Grammars for answers that must call a function, in the notation of the model's family, so that its parser reads them.

An answer that must match something may call instead, where the model has the choice. One that is free to say anything
follows a grammar from the marker on with which a call begins, if a function is `strict`. Reasoning may come first where
the model reasons. Schemas are enforced as far as they can be; wholly, or the request is refused, where a function says
that it is `strict`.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from armature.openai.parsers import deepseek, harmony, hermes, mistral, qwen_coder
from armature.openai.parsers.families import HARMONY, REASONING_FAMILIES, AnswerFormat, Reading
from armature.openai.tools import ToolUse
from armature.openai.vocabulary import Vocabulary
from armature.v1.common_pb2 import Grammar

MAX_CALLS = 8
"""In one answer that must call something: a model that has begun might not find an end."""

_ANY_TEXT = "/(?s:.*)/"
_LAYOUT = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}


@dataclass(frozen=True, slots=True)
class Notation:
    """What stands around arguments. `NAME` stands for the function's."""

    opening: str
    closing: str
    between: str | None
    """None: there is but one call."""
    before: str = ""
    after: str = ""


_JSON_CALL = '{"name": "NAME", "arguments": '


def forced_calls(tools: ToolUse, reading: Reading, vocabulary: Vocabulary, template: str) -> Grammar:
    """What an answer must match that calls one of `tools.must_call`, or several of them."""
    writer = _Writer(tools, reading, vocabulary)
    return Grammar(ebnf=writer.write(tools.must_call, _notation(reading.format, template)))


def calls_or_answer(
    tools: ToolUse, reading: Reading, vocabulary: Vocabulary, template: str, answer: Grammar
) -> Grammar | None:
    """What an answer must match that calls one of the functions, or several, or matches `answer`.

    None: `answer` has a notation of its own, into which no calls can be put, or calls of this family begin as an answer
    does, which the lexer can't tell apart.
    """
    if answer.WhichOneof("kind") == "ebnf" or reading.format.tools == "llama3":
        return None
    writer = _Writer(tools, reading, vocabulary)
    return Grammar(ebnf=writer.write(list(tools.parameters), _notation(reading.format, template), answer))


def strict_calls(tools: ToolUse, reading: Reading, vocabulary: Vocabulary, template: str) -> Grammar | None:
    """What an answer must match that says what it likes and whose calls fit, those of `strict` functions exactly.

    None: no function is strict, or this family's calls have no marker of their own by which to tell them from text.
    """
    marker = _MARKERS.get(reading.format.tools)
    writer = _Writer(tools, reading, vocabulary)
    if marker is None or not writer.strict:
        return None
    return Grammar(ebnf=writer.write_among_text(list(tools.parameters), _notation(reading.format, template), marker))


_MARKERS = {"hermes": hermes.START, "mistral": mistral.START, "deepseek": deepseek.CALLS_START}


def _notation(answer_format: AnswerFormat, template: str) -> Notation:
    """As the family's models write calls; the template tells versions apart."""
    match answer_format.tools:
        case "hermes":
            return Notation(f"{hermes.START}\n{_JSON_CALL}", f"}}\n{hermes.END}", "\n")
        case "qwen3_coder":
            head = f"{qwen_coder.OUTER_START}\n{qwen_coder.START}NAME>\n"
            return Notation(head, f"{qwen_coder.END}\n{qwen_coder.OUTER_END}", "\n")
        case "llama3":
            return Notation('{"name": "NAME", "parameters": ', "}", "; ")
        case "mistral" if mistral.ARGUMENTS in template:
            return Notation(f"{mistral.START}NAME{mistral.ARGUMENTS}", "", "")
        case "mistral":
            return Notation(_JSON_CALL, "}", ", ", before=f"{mistral.START} [", after="]")
        case "deepseek" if "```json" in template:
            head, tail = f"{deepseek.START}function{deepseek.SEPARATOR}NAME\n```json\n", f"\n```{deepseek.END}"
            return Notation(head, tail, "\n", before=deepseek.CALLS_START, after=deepseek.CALLS_END)
        case "deepseek":
            head = f"{deepseek.START}NAME{deepseek.SEPARATOR}"
            return Notation(head, deepseek.END, "", before=deepseek.CALLS_START, after=deepseek.CALLS_END)
        case _:
            head = f"{harmony.CHANNEL}commentary to=functions.NAME <|constrain|>json{harmony.MESSAGE}"
            return Notation(head, "", None)


class _Writer:
    """Writes one grammar in Lark's notation as llguidance reads it."""

    def __init__(self, tools: ToolUse, reading: Reading, vocabulary: Vocabulary) -> None:
        self._tools = tools
        self._reading = reading
        specials = {name: vocabulary.ids_of([name]) & vocabulary.special_ids for name in reading.markers}
        self._specials = {name: next(iter(ids)) for name, ids in specials.items() if ids}
        self.strict = {
            function["name"] for function in (tool["function"] for tool in tools.definitions) if function.get("strict")
        }
        self._frees_others = False
        """Functions that are not strict take any object."""
        self._rules: list[str] = []

    def write(self, names: Sequence[str], notation: Notation, answer: Grammar | None = None) -> str:
        """Calls of functions with these names, or else the `answer`."""
        self._calls(names, notation)
        what = "calls" if answer is None else f"(calls | {self._answer(answer)})"
        return "\n".join([f"start: {self._reasoning()} {what}", *self._rules])

    def _calls(self, names: Sequence[str], notation: Notation) -> None:
        """The rule `calls`, and those that it needs."""
        calls = [self._call(index, name, notation) for index, name in enumerate(names)]
        is_one = notation.between is None or not self._tools.is_parallel or len(calls) == 1
        more = "" if is_one else f"({self._text(notation.between or '')} call){{0,{MAX_CALLS - 1}}}"
        parts = (self._text(notation.before), "call", more, self._text(notation.after))
        self._rules += [f"calls: {' '.join(filter(None, parts))}", f"call: {' | '.join(calls)}"]

    def write_among_text(self, names: Sequence[str], notation: Notation, marker: str) -> str:
        """Text, in which whatever begins with the marker is a call of one of these functions, or a group of them."""
        if notation.before:
            behind = replace(notation, before=notation.before.removeprefix(marker))
        else:  # each call has the marker, so one behind the other is text of no length between two
            behind = replace(notation, opening=notation.opening.removeprefix(marker), between=None)
        self._frees_others = True
        self._calls(names, behind)
        if marker in self._specials:
            head = f"{_ANY_TEXT} {self._text(marker)}"
        else:
            self._rules.append(f"head[suffix={json.dumps(marker)}]: {_ANY_TEXT}")
            head = "head"
        return "\n".join([f"start: {self._reasoning()} ({head} calls){{0,{MAX_CALLS}}} {_ANY_TEXT}", *self._rules])

    def _answer(self, answer: Grammar) -> str:
        kind = answer.WhichOneof("kind")
        if kind == "json_schema":
            schema = json.loads(answer.json_schema)
            told = self._json("answer", {**schema, "x-guidance": _LAYOUT} if isinstance(schema, dict) else schema)
        elif kind == "json_object":
            told = self._json("answer", {"type": "object", "x-guidance": _LAYOUT})
        elif kind == "regex":
            told = "ANSWER"
            self._rules.append(f"{told}: /{_unescaped_slashes(answer.regex)}/")
        else:
            told = f"({' | '.join(map(json.dumps, answer.choice.texts))})"
        if self._reading.format.tools == HARMONY:
            return f"({self._text(f'{harmony.CHANNEL}final{harmony.MESSAGE}')} {told})"
        return told

    def _call(self, index: int, name: str, notation: Notation) -> str:
        is_written_out = self._reading.format.tools == "qwen3_coder"
        arguments = (
            self._values(index, name) if is_written_out else self._json(f"arguments_{index}", self._schema(name))
        )
        opening, closing = self._text(notation.opening.replace("NAME", name)), self._text(notation.closing)
        self._rules.append(f"call_{index}: {opening} {arguments} {closing}")
        return f"call_{index}"

    def _schema(self, name: str) -> dict[str, Any]:
        """The arguments; a model may not add to those that are named."""
        if self._frees_others and name not in self.strict:
            return {"type": "object", "x-guidance": {"whitespace_flexible": True}}
        given = self._tools.parameters[name]
        is_open = "additionalProperties" in given or any(key in given for key in ("$ref", "anyOf", "oneOf", "allOf"))
        closed = {} if is_open else {"properties": {}, "additionalProperties": False}
        options = _LAYOUT | {"lenient": name not in self.strict}
        return {"type": "object", **closed, **given, "x-guidance": options}

    def _json(self, rule: str, schema: Any) -> str:
        self._rules.append(f"{rule}: %json {json.dumps(schema)}")
        return rule

    def _values(self, index: int, name: str) -> str:
        """Qwen3-Coder's arguments, in the schema's order."""
        schema = self._schema(name)
        required = schema.get("required", ())
        shared = {key: schema[key] for key in ("$defs", "definitions", "x-guidance") if key in schema}
        parts: list[str] = []
        for number, (key, value) in enumerate(schema.get("properties", {}).items()):
            rule, is_text = f"value_{index}_{number}", isinstance(value, dict) and value.get("type") == "string"
            end = f"\n{qwen_coder.VALUE_END}\n"
            if is_text and "enum" in value:
                body = f"({' | '.join(map(json.dumps, value['enum']))}) {json.dumps(end)}"
            elif is_text:
                self._rules.append(f"{rule}[suffix={json.dumps(end)}]: {_ANY_TEXT}")
                body = rule
            else:
                body = (
                    f"{self._json(rule, {**value, **shared} if isinstance(value, dict) else shared)} {json.dumps(end)}"
                )
            whole = f"({json.dumps(f'{qwen_coder.VALUE_START}{key}>' + chr(10))} {body})"
            parts.append(whole if key in required else f"{whole}?")
        return " ".join(parts)

    def _reasoning(self) -> str:
        """What may come before the calls."""
        if self._reading.format.tools == HARMONY:
            head, tail = f"{harmony.CHANNEL}analysis{harmony.MESSAGE}", f"{harmony.END}{harmony.START}assistant"
            return f"({self._text(head)} {_ANY_TEXT} {self._text(tail)})?"
        tags = REASONING_FAMILIES.get(self._reading.format.reasoning)
        if tags is None:
            return ""
        if tags.end in self._specials:
            thought = f"{_ANY_TEXT} {self._text(tags.end)}"
        else:
            self._rules.append(f"thought[suffix={json.dumps(tags.end)}]: {_ANY_TEXT}")
            thought = "thought"
        thought += r" /\n{0,2}/"
        return thought if self._reading.is_inside else f"({self._text(tags.start)} {thought})?"

    def _text(self, text: str) -> str:
        """A literal; special tokens in it by their ids."""
        if not self._specials:
            return json.dumps(text) if text else ""
        pieces = re.split(f"({'|'.join(map(re.escape, self._specials))})", text)
        return " ".join(
            f"<[{self._specials[piece]}]>" if piece in self._specials else json.dumps(piece)
            for piece in pieces
            if piece
        )


def _unescaped_slashes(pattern: str) -> str:
    """A regular expression between slashes: those in it are escaped once."""
    return re.sub(r"(?s)(\\.)|/", lambda found: found[1] or r"\/", pattern)
