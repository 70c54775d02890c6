"""The `anthropic` client."""

import json
from functools import cache
from typing import Any

import anthropic
import jsonschema

from tests.tour.steps import QUESTION, SCHEMA, Step, Target, main

MESSAGES: Any = [{"role": "user", "content": QUESTION}]
GREEDY: Any = {"extra_body": {"temperature": 0}}
TOOL: Any = {"name": "look_up", "description": "Looks something up.", "input_schema": SCHEMA}


@cache
def client(target: Target) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=target.url, api_key=target.key, max_retries=0, timeout=60)


def a_message_says_the_same_streamed(target: Target) -> None:
    ask: Any = {"model": target.model, "messages": MESSAGES, "max_tokens": 30, **GREEDY}
    whole = client(target).messages.create(**ask)
    with client(target).messages.stream(**ask) as stream:
        text = "".join(stream.text_stream)
        streamed = stream.get_final_message()
    assert text and text == whole.content[0].text
    assert streamed.stop_reason == whole.stop_reason
    assert streamed.usage.output_tokens == whole.usage.output_tokens


def tokens_are_counted_as_they_are_used(target: Target) -> None:
    ask: Any = {"model": target.model, "messages": MESSAGES, "system": "Answer with care."}
    counted = client(target).messages.count_tokens(**ask)
    used = client(target).messages.create(max_tokens=1, **ask).usage
    assert counted.input_tokens == used.input_tokens + (used.cache_read_input_tokens or 0)


def a_stop_sequence_ends_the_answer(target: Target) -> None:
    ask: Any = {"model": target.model, "messages": MESSAGES, "max_tokens": 30, **GREEDY}
    text = client(target).messages.create(**ask).content[0].text
    stop = text[4:8]
    short = client(target).messages.create(**ask, stop_sequences=[stop])
    assert (short.stop_reason, short.stop_sequence) == ("stop_sequence", stop)
    assert short.content[0].text == text.partition(stop)[0]


def an_answer_matches_its_schema(target: Target) -> None:
    wanted: Any = {"format": {"type": "json_schema", "schema": SCHEMA}}
    message = client(target).messages.create(
        model=target.model, max_tokens=200, messages=MESSAGES, output_config=wanted, **GREEDY
    )
    assert message.content[0].type == "text"
    jsonschema.validate(json.loads(message.content[0].text), SCHEMA)


def a_tool_is_used_and_its_result_taken_back(target: Target) -> None:
    ask: Any = {"model": target.model, "max_tokens": 200, "tools": [TOOL], **GREEDY}
    with client(target).messages.stream(messages=MESSAGES, tool_choice={"type": "any"}, **ask) as stream:
        asked = stream.get_final_message()
    uses = [block for block in asked.content if block.type == "tool_use"]
    assert uses and asked.stop_reason == "tool_use"
    for use in uses:
        jsonschema.validate(use.input, SCHEMA)
    found: Any = [{"type": "tool_result", "tool_use_id": use.id, "content": "It joins."} for use in uses]
    history = [*MESSAGES, {"role": "assistant", "content": asked.content}, {"role": "user", "content": found}]
    answer = client(target).messages.create(messages=history, tool_choice={"type": "none"}, **ask | {"max_tokens": 20})
    assert answer.stop_reason in ("end_turn", "max_tokens")


def mistakes_are_the_errors_that_the_client_knows(target: Target) -> None:
    for wrong, kind in (({"model": "nobody"}, anthropic.NotFoundError), ({"max_tokens": 0}, anthropic.BadRequestError)):
        ask: Any = {"model": target.model, "messages": MESSAGES, "max_tokens": 5, **wrong}
        try:
            client(target).messages.create(**ask)
        except kind:
            continue
        raise AssertionError(f"{wrong} was taken")


STEPS: tuple[Step, ...] = (
    a_message_says_the_same_streamed,
    tokens_are_counted_as_they_are_used,
    a_stop_sequence_ends_the_answer,
    an_answer_matches_its_schema,
    a_tool_is_used_and_its_result_taken_back,
    mistakes_are_the_errors_that_the_client_knows,
)

if __name__ == "__main__":
    main("anthropic", STEPS)
