"""Answers that must match a grammar, made by the demo model in its engine: always valid, however they are batched."""

import json
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import jsonschema
from hypothesis import HealthCheck, given, settings
from tokenizers import Tokenizer

from armature.blocks.hashing import BlockHasher
from armature.engines.demo_model import DEMO_MODEL_NAME, DEMO_MODEL_PATH
from armature.engines.local import LocalEngine
from armature.engines.torch.runner import torch_engine_runner
from armature.scheduling.request import FinishReason, Request, Sampling
from armature.v1.common_pb2 import Grammar, TextChoice
from tests.support.engine_listener import Listener

TOKENIZER = Tokenizer.from_file(str(DEMO_MODEL_PATH / "tokenizer.json"))
PROMPT = TOKENIZER.encode("What does os.path.join do?").ids
HASHER = BlockHasher(b"secret", 16)
ENOUGH_TOKENS = 700
"""For every answer under the schemas below, which bound all that could go on: one cut short would not be valid."""
NUM_SCHEMAS, AT_ONCE = int(os.environ.get("SCHEMAS", "50")), 25
"""`make schemas` tries more."""

NAMES = st.sampled_from(["id", "name", "über", "a b", 'quo"te', "$x", "tags", "kind"])
LEAVES = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.builds(
        lambda low, width: {"type": "integer", "minimum": low, "maximum": low + width},
        st.integers(-1000, 1000),
        st.integers(0, 10_000),
    ),
    st.builds(
        lambda low, more: {"type": "string", "minLength": low, "maxLength": low + more},
        st.integers(0, 3),
        st.integers(0, 12),
    ),
    st.sampled_from(
        [
            {"type": "string", "pattern": "^[a-f]{2,6}-[0-9]{1,3}$"},
            {"type": "string", "format": "date"},
            {"type": "string", "format": "uuid"},
            {"const": {"fixed": [1, "two", None]}},
        ]
    ),
    st.builds(
        lambda values: {"enum": values},
        st.lists(st.one_of(st.text(max_size=8), st.integers(-99, 99), st.none()), min_size=1, max_size=4, unique=True),
    ),
)


def containers(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    def of_properties(properties: dict[str, Any], required: int) -> dict[str, Any]:
        return {
            "type": "object",
            "properties": properties,
            "required": list(properties)[:required],
            "additionalProperties": False,
        }

    arrays = st.builds(
        lambda items, low, more: {"type": "array", "items": items, "minItems": low, "maxItems": low + more},
        inner,
        st.integers(0, 2),
        st.integers(0, 2),
    )
    objects = st.builds(of_properties, st.dictionaries(NAMES, inner, max_size=4), st.integers(0, 4))
    choices = st.builds(lambda options: {"anyOf": options}, st.lists(inner, min_size=1, max_size=3))
    return st.one_of(objects, arrays, choices)


SCHEMAS = st.recursive(LEAVES, containers, max_leaves=8)


@asynccontextmanager
async def demo_engine(num_blocks: int) -> AsyncIterator[tuple[LocalEngine, Listener]]:
    runner = torch_engine_runner(
        DEMO_MODEL_PATH, model_name=DEMO_MODEL_NAME, device="cpu", num_blocks=num_blocks, threads=1
    )
    engine, heard = LocalEngine(runner, HASHER), Listener()
    await engine.start(heard.hear)
    try:
        yield engine, heard
    finally:
        await engine.stop()


async def ordered(engine: LocalEngine, name: str, grammar: Grammar, **changes: Any) -> Request:
    """A request whose grammar is compiled."""
    sampling = Sampling(temperature=1.0, seed=sum(name.encode()), top_p=0.95)
    order = Request(name, PROMPT, len(PROMPT), ENOUGH_TOKENS, HASHER.root(DEMO_MODEL_NAME), sampling)
    return replace(order, grammar=await engine.compile(grammar), **changes)


@settings(max_examples=NUM_SCHEMAS // AT_ONCE, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(SCHEMAS, min_size=AT_ONCE, max_size=AT_ONCE))
async def test_answers_under_random_schemas_are_valid(schemas: list[dict[str, Any]]) -> None:
    async with demo_engine(num_blocks=400) as (engine, heard):
        requests = [
            await ordered(engine, f"{index}", Grammar(json_schema=json.dumps(schema)))
            for index, schema in enumerate(schemas)
        ]
        for request in requests:
            engine.submit(request)
        await heard.end_of(*requests)
    for request, schema in zip(requests, schemas, strict=True):
        text = TOKENIZER.decode(heard.tokens[request.request_id])
        assert heard.ends[request.request_id].finish_reason is FinishReason.STOP, f"{schema}: {text}"
        jsonschema.validate(json.loads(text), schema, format_checker=jsonschema.FormatChecker())


SCHEMA = """{"type": "object", "additionalProperties": false, "required": ["name", "on", "sizes"], "properties": {
    "name": {"type": "string", "maxLength": 40}, "on": {"type": "boolean"},
    "sizes": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 3}}}"""


async def test_a_preempted_answer_goes_on_as_it_would_have() -> None:
    told: list[dict[str, list[int]]] = []
    for num_blocks in (12, 200):
        async with demo_engine(num_blocks) as (engine, heard):
            requests = [await ordered(engine, f"{index}", Grammar(json_schema=SCHEMA)) for index in range(6)]
            for request in requests:
                engine.submit(request)
            await heard.end_of(*requests)
            assert bool(heard.outputs[-1].load.preemptions) == (num_blocks == 12)
            told.append(dict(heard.tokens))
    assert told[0] == told[1]


async def test_a_moved_answer_goes_on_as_it_would_have() -> None:
    async with demo_engine(num_blocks=100) as (engine, heard):
        grammar = Grammar(json_schema=SCHEMA)
        whole = await ordered(engine, "whole", grammar)
        engine.submit(whole)
        await heard.end_of(whole)
        made = heard.tokens["whole"]
        for known in range(1, len(made), 6):
            moved = await ordered(engine, f"from {known}", grammar, token_ids=PROMPT + made[:known])
            moved = replace(moved, sampling=whole.sampling)
            heard.tokens[moved.request_id] = made[:known]
            engine.submit(moved)
            await heard.end_of(moved)
            assert heard.tokens[moved.request_id] == made
    assert json.loads(TOKENIZER.decode(made))


async def test_every_kind_of_grammar_is_kept_to_and_the_others_of_a_batch_are_left_alone() -> None:
    async with demo_engine(num_blocks=200) as (engine, heard):
        free = Request("free", PROMPT, len(PROMPT), 40, HASHER.root(DEMO_MODEL_NAME), Sampling(seed=5, ignore_eos=True))
        engine.submit(free)
        await heard.end_of(free)
        bound = {
            r"[a-c]{3}\d{2}": Grammar(regex=r"[a-c]{3}\d{2}"),
            "(red|green)": Grammar(choice=TextChoice(texts=["red", "green"])),
            "(yes|no)( and (yes|no))*": Grammar(ebnf='start: one (" and " one)*\none: "yes" | "no"'),
            "(a|b)+c": Grammar(ebnf='root ::= "a" root | "b" root | "ac" | "bc"'),
            r"\{.*\}": Grammar(json_object=True),
        }
        requests = [await ordered(engine, f"bound {at}", one) for at, one in enumerate(bound.values())]
        twin = replace(free, request_id="twin")
        for request in (*requests, twin):
            engine.submit(request)
        await heard.end_of(*requests, twin)
    for request, expression in zip(requests, bound, strict=True):
        text = TOKENIZER.decode(heard.tokens[request.request_id], skip_special_tokens=True)
        if heard.ends[request.request_id].finish_reason is FinishReason.STOP:
            assert re.fullmatch(expression, text, re.DOTALL), text
    assert heard.tokens["twin"] == heard.tokens["free"]


async def test_an_output_that_breaks_its_grammar_ends_its_own_request_with_the_reason() -> None:
    async with demo_engine(num_blocks=100) as (engine, heard):
        wrong = await ordered(engine, "wrong", Grammar(regex="[0-9]+"), token_ids=PROMPT + TOKENIZER.encode("five").ids)
        heard.tokens["wrong"] = list(TOKENIZER.encode("five").ids)
        right = await ordered(engine, "right", Grammar(regex="[0-9]{5}"))
        engine.submit(wrong)
        engine.submit(right)
        await heard.end_of(wrong, right)
        assert heard.outputs[-1].load.failed_steps_in_a_row == 0
    assert heard.ends["wrong"].finish_reason is FinishReason.ERROR
    assert heard.ends["wrong"].error.startswith("grammar: ")
    assert re.fullmatch("[0-9]{5}", TOKENIZER.decode(heard.tokens["right"]))
