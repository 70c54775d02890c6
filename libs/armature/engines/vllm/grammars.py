"""Grammars as vLLM takes them. It follows them with llguidance, as we do, but takes our notation in Lark only. Pure."""

import json
from typing import Any

from armature.grammars.notation import check, source_of
from armature.v1.common_pb2 import Grammar


def lark_of(grammar: Grammar) -> str:
    """The grammar in llguidance's Lark.

    Raises:
        GrammarError: it can't be followed.
    """
    check(grammar)
    source = source_of(grammar)
    if not source.startswith("{"):
        return source
    (part,) = json.loads(source)["grammars"]
    lark: Any = part["lark_grammar"]
    # ASCII with a colon escaped, so that a text in a schema can't be taken for the other notation, GBNF.
    return lark or "start: %json " + json.dumps(part["json_schema"]).replace("::=", "::\\u003d")
