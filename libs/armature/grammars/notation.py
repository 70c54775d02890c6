"""From the contract's `Grammar` to the notation of llguidance, and whether it can be followed at all.

llguidance parses (Earley, over lexemes that are derivatives of regular expressions) instead of making tables for a
vocabulary, so a grammar costs about a millisecond the first time it is seen, and nobody has to wait for one.
"""

import json
from typing import TYPE_CHECKING

from llguidance import LLMatcher, LLParserLimits
from llguidance.gbnf_to_lark import gbnf_to_lark

from armature.v1.common_pb2 import Grammar

if TYPE_CHECKING:  # it is only in the library's stub
    from llguidance._lib import JsonCompileOptions

MAX_GRAMMAR_BYTES = 256 * 1024
MAX_MESSAGE_CHARACTERS = 400

LIMITS = LLParserLimits(
    max_lexer_states=32_768,  # 1 to 2 KB each: what one hostile expression may take
    max_grammar_size=200_000,
    verbose_errors=False,
)

JSON_LAYOUT: "JsonCompileOptions" = {
    "item_separator": ", ",
    "key_separator": ": ",
    "whitespace_flexible": False,
    "coerce_one_of": False,
    "lenient": False,
}
"""JSON as Python's `json.dumps` writes it, which models have seen most of. Were white space free, a model could go on
with it for ever. Keywords that can't be enforced are refused: the answer would only look as if it were valid."""

ANY_OBJECT = '{"type": "object"}'


class GrammarError(ValueError):
    """The grammar can't be followed; the message says what is wrong in it."""


def source_of(grammar: Grammar) -> str:
    """The grammar in llguidance's notation.

    Raises:
        GrammarError: it can't be read, or it is too large.
    """
    size_bytes = grammar.ByteSize()
    if size_bytes > MAX_GRAMMAR_BYTES:
        raise GrammarError(f"it has {size_bytes} bytes; {MAX_GRAMMAR_BYTES} are possible")
    kind = grammar.WhichOneof("kind")
    if kind == "json_schema":
        return _from_json_schema(grammar.json_schema)
    if kind == "json_object":
        return _from_json_schema(ANY_OBJECT)
    if kind == "regex":
        return LLMatcher.grammar_from_regex(grammar.regex)
    if kind == "ebnf":
        return _from_ebnf(grammar.ebnf)
    if kind == "choice":
        return _from_choice(grammar)
    raise GrammarError("it is empty; one of json_schema, json_object, regex, ebnf and choice must be set")


def check(grammar: Grammar) -> None:
    """Compile the grammar as far as that is possible without a vocabulary, to tell its author what is wrong in it.

    Takes a millisecond, or some hundred for the largest: call it off an event loop if the grammar is long.

    Raises:
        GrammarError: it can't be followed.
    """
    is_wrong, messages = LLMatcher.validate_grammar_with_warnings(source_of(grammar), limits=LIMITS)
    if is_wrong:
        raise GrammarError(readable(messages[0]))


def readable(message: str) -> str:
    """llguidance's message on one line, without the parser's state and the whole of a regular expression."""
    lines = [" ".join(line.split()) for line in message.split("<state>")[0].splitlines()]
    told = [line for line in lines if line.startswith("error: ")] or [line for line in lines if line]
    return "; ".join(told)[:MAX_MESSAGE_CHARACTERS]


def _from_json_schema(schema: str) -> str:
    try:
        return LLMatcher.grammar_from_json_schema(schema, overrides=JSON_LAYOUT)
    except ValueError as error:
        raise GrammarError(f"the schema must be a JSON object: {error}") from None


def _from_ebnf(text: str) -> str:
    try:
        return LLMatcher.grammar_from_lark(gbnf_to_lark(text) if "::=" in text else text)
    except Exception as error:  # the converter from GBNF raises plain Exception
        raise GrammarError(readable(str(error))) from None


def _from_choice(grammar: Grammar) -> str:
    texts = list(dict.fromkeys(grammar.choice.texts))
    if not texts:
        raise GrammarError("there is nothing to choose from")
    return LLMatcher.grammar_from_lark("start: " + " | ".join(json.dumps(text) for text in texts))
