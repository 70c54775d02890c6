"""Structured output: the ways in which a request may say what its answer must match, and whether that is possible.

OpenAI's `response_format`, vLLM's `structured_outputs` and its older `guided_*` all end in one `Grammar`. A schema is
always enforced, `strict` or not; what of it can't be enforced is refused by name instead of being left out.
"""

import asyncio
from collections.abc import Iterator
from functools import lru_cache

import msgspec

from armature.grammars.notation import GrammarError, check
from armature.openai.errors import invalid, unsupported
from armature.openai.schema import Body
from armature.v1.common_pb2 import Grammar, TextChoice

INLINE_BYTES = 4096
"""Longer grammars are checked on a thread."""
MAX_CHECKED = 64

_ABSENT = ("", "null")


def grammar_of(body: Body) -> tuple[Grammar | None, str]:
    """What the answer must match, and the field that says so; None: anything.

    Raises:
        ApiError: 400 that names the field: two of them say it, or one says it wrongly.
    """
    found = list(_said(body))
    if len(found) > 1:
        raise invalid(found[1][0], f"give either this or {found[0][0]}; an answer can't match two")
    if not found:
        return None, ""
    field, grammar = found[0]
    if body.min_tokens:
        raise invalid("min_tokens", f"not possible with {field}, which says itself when the answer ends")
    return grammar, field


async def check_grammar(grammar: Grammar, field: str) -> None:
    """Tell the client what is wrong in its grammar before anything is computed for it.

    Raises:
        ApiError: 400 that names `field`.
    """
    serialized = grammar.SerializeToString()
    try:
        if len(serialized) > INLINE_BYTES:
            await asyncio.to_thread(_check, serialized)
        else:
            _check(serialized)
    except GrammarError as error:
        raise invalid(field, str(error), code="invalid_grammar") from None


@lru_cache(maxsize=MAX_CHECKED)
def _check(serialized: bytes) -> None:
    check(Grammar.FromString(serialized))


def _said(body: Body) -> Iterator[tuple[str, Grammar]]:
    if (wanted := body.response_format) is not None and wanted.type != "text":
        yield _from_response_format(body)
    if (outputs := body.structured_outputs) is not None:
        if outputs.structural_tag:
            raise unsupported("structured_outputs.structural_tag", "use json, regex, choice or grammar")
        where = "structured_outputs."
        if outputs.json_object:
            yield f"{where}json_object", Grammar(json_object=True)
        yield from _constraints(where, outputs.json, outputs.regex, outputs.choice, outputs.grammar)
    yield from _constraints("guided_", body.guided_json, body.guided_regex, body.guided_choice, body.guided_grammar)


def _from_response_format(body: Body) -> tuple[str, Grammar]:
    wanted = body.response_format
    assert wanted is not None
    if wanted.type == "json_object":
        return "response_format", Grammar(json_object=True)
    if wanted.type != "json_schema":
        raise invalid("response_format.type", f"must be text, json_object or json_schema, not '{wanted.type[:40]}'")
    if wanted.json_schema is None:
        raise invalid("response_format.json_schema", "must be set when the type is json_schema")
    field = "response_format.json_schema.schema"
    schema = _text(field, wanted.json_schema.schema)
    if schema in _ABSENT:
        raise invalid(field, "must be a JSON Schema")
    return field, Grammar(json_schema=schema)


def _constraints(
    prefix: str, json: msgspec.Raw, regex: str | None, choice: list[str] | None, grammar: str | None
) -> Iterator[tuple[str, Grammar]]:
    field = f"{prefix}json"
    if (schema := _text(field, json)) not in _ABSENT:
        # It is taken as an object and as a string that holds one.
        yield field, Grammar(json_schema=msgspec.json.decode(schema) if schema.startswith('"') else schema)
    if regex is not None:
        yield f"{prefix}regex", Grammar(regex=regex)
    if choice is not None:
        yield f"{prefix}choice", Grammar(choice=TextChoice(texts=choice))
    if grammar is not None:
        yield f"{prefix}grammar", Grammar(ebnf=grammar)


def _text(field: str, raw: msgspec.Raw) -> str:
    """What the decoder has passed over, strings unread."""
    try:
        return bytes(raw).decode()
    except UnicodeDecodeError as error:
        raise invalid(field, f"it is not valid UTF-8: {error}", code="invalid_json") from None
