"""What a grammar may say, and what its author is told if it can't be followed."""

import json

import pytest

from armature.grammars.notation import MAX_GRAMMAR_BYTES, GrammarError, check
from armature.v1.common_pb2 import Grammar, TextChoice


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar(json_object=True),
        Grammar(json_schema='{"type": "array", "items": {"type": "integer"}}'),
        Grammar(regex=r"[a-z]+@[a-z]+\.(com|org)"),
        Grammar(ebnf='start: "yes" | "no" | start " and " start'),
        Grammar(ebnf='root ::= "yes" | "no " root'),
        Grammar(choice=TextChoice(texts=["red", "", 'a "quoted"\n\u2028 text', "red"])),
    ],
)
def test_a_sound_grammar_passes(grammar: Grammar) -> None:
    check(grammar)


@pytest.mark.parametrize(
    ("grammar", "complaint"),
    [
        (Grammar(), "empty"),
        (Grammar(json_schema="{"), "must be a JSON object"),
        (Grammar(json_schema="[1]"), "must be a JSON object"),
        (Grammar(json_schema='{"type": "strng"}'), "strng"),
        (Grammar(json_schema='{"not": {"type": "string"}}'), "not"),
        (Grammar(json_schema='{"$ref": "#/$defs/absent"}'), "absent"),
        (Grammar(json_schema='{"type": "integer", "minimum": 5, "maximum": 3}'), "minimum"),
        (Grammar(json_schema='{"type": "array", "uniqueItems": true, "x-guidance": {"lenient": true}}'), "uniqueItems"),
        (Grammar(regex="(a"), "unclosed group"),
        (Grammar(regex="(?=a)b"), "look-ahead"),
        (Grammar(ebnf='begin: "a"'), "start"),
        (Grammar(ebnf='root ::= "a'), "Unexpected end"),
        (Grammar(choice=TextChoice()), "nothing to choose from"),
        (Grammar(json_schema=json.dumps({"const": "x" * MAX_GRAMMAR_BYTES})), "bytes"),
    ],
)
def test_what_is_wrong_is_named(grammar: Grammar, complaint: str) -> None:
    with pytest.raises(GrammarError, match=complaint) as refused:
        check(grammar)
    assert "\n" not in str(refused.value)
