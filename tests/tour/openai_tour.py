"""The `openai` client."""

import json
import time
from functools import cache
from typing import Any

import jsonschema
import openai
import pydantic

from tests.tour.steps import QUESTION, SCHEMA, Step, Target, main

MESSAGES: Any = [{"role": "user", "content": QUESTION}]
GREEDY: Any = {"temperature": 0, "max_tokens": 30}
SHORT: Any = {"temperature": 0, "max_output_tokens": 30}
TOOL: Any = {
    "type": "function",
    "function": {"name": "look_up", "description": "Looks something up.", "parameters": SCHEMA, "strict": True},
}


class Answer(pydantic.BaseModel):
    """What the client makes a strict schema of."""

    kind: str
    is_good: bool


@cache
def client(target: Target) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{target.url}/v1", api_key=target.key, max_retries=0, timeout=60)


def tokens_of(target: Target, text: str) -> list[int]:
    told: Any = client(target).post(
        f"{target.url}/tokenize", cast_to=object, body={"model": target.model, "prompt": text}
    )
    return told["tokens"]


def models_are_listed(target: Target) -> None:
    assert target.model in [model.id for model in client(target).models.list()]
    assert client(target).models.retrieve(target.model).id == target.model


def a_chat_says_the_same_streamed(target: Target) -> None:
    ask: Any = {"model": target.model, "messages": MESSAGES, **GREEDY}
    whole = client(target).chat.completions.create(**ask)
    text, reason, usage = "", None, None
    for chunk in client(target).chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reason = choice.finish_reason or reason
    assert text and (text, reason) == (whole.choices[0].message.content, whole.choices[0].finish_reason)
    assert usage.completion_tokens == whole.usage.completion_tokens
    assert usage.prompt_tokens_details.cached_tokens > 0


def a_seed_gives_the_same_answer_again(target: Target) -> None:
    ask: Any = {"model": target.model, "messages": MESSAGES, "seed": 7, "temperature": 1, "max_tokens": 30}
    said = [client(target).chat.completions.create(**ask).choices[0].message.content for _ in range(2)]
    assert said[0] == said[1]


def log_probabilities_come_with_the_tokens(target: Target) -> None:
    ask: Any = {"model": target.model, "messages": MESSAGES, "logprobs": True, "top_logprobs": 3, **GREEDY}
    whole = client(target).chat.completions.create(**ask)
    entries = whole.choices[0].logprobs.content
    assert "".join(entry.token for entry in entries).startswith(whole.choices[0].message.content)
    assert all(len(entry.top_logprobs) == 3 and entry.logprob <= 0 for entry in entries)
    streamed = client(target).chat.completions.create(**ask, stream=True)
    again = [entry for chunk in streamed for choice in chunk.choices if choice.logprobs
             for entry in choice.logprobs.content or ()]  # fmt: skip
    assert [entry.token for entry in again] == [entry.token for entry in entries]


def two_answers_differ_streamed_or_not(target: Target) -> None:
    ask: Any = {"model": target.model, "messages": MESSAGES, "n": 2, "seed": 1, "temperature": 2, "max_tokens": 20}
    whole = client(target).chat.completions.create(**ask)
    texts = ["", ""]
    for chunk in client(target).chat.completions.create(**ask, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]
    assert texts[0] != texts[1]


def an_answer_matches_its_schema(target: Target) -> None:
    ask: Any = {"model": target.model, "messages": MESSAGES, "temperature": 0}
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}
    whole = client(target).chat.completions.create(**ask, response_format=wanted)
    streamed = client(target).chat.completions.create(**ask, response_format=wanted, stream=True)
    text = "".join(choice.delta.content or "" for chunk in streamed for choice in chunk.choices)
    assert text == whole.choices[0].message.content
    jsonschema.validate(json.loads(text), SCHEMA)
    parsed = client(target).chat.completions.parse(**ask, response_format=Answer, seed=3)
    assert isinstance(parsed.choices[0].message.parsed, Answer)


def a_tool_is_called_and_its_result_taken_back(target: Target) -> None:
    ask: Any = {"model": target.model, "tools": [TOOL], "temperature": 0, "max_tokens": 200}
    called = client(target).chat.completions.create(messages=MESSAGES, tool_choice="required", **ask)
    calls: Any = called.choices[0].message.tool_calls
    assert called.choices[0].finish_reason == "tool_calls"
    for call in calls:
        assert call.function.name == "look_up"
        jsonschema.validate(json.loads(call.function.arguments), SCHEMA)
    with client(target).chat.completions.stream(messages=MESSAGES, tool_choice="required", **ask) as stream:
        again: Any = stream.get_final_completion().choices[0].message.tool_calls
    assert [call.function.arguments for call in again] == [call.function.arguments for call in calls]
    results = [{"role": "tool", "tool_call_id": call.id, "content": "It joins."} for call in calls]
    history: Any = [*MESSAGES, called.choices[0].message.model_dump(exclude_none=True), *results]
    answer = client(target).chat.completions.create(messages=history, **ask | {"max_tokens": 20})
    assert answer.choices[0].message.content or answer.choices[0].message.tool_calls


def a_completion_says_the_same_streamed_with_log_probabilities(target: Target) -> None:
    ask: Any = {"model": target.model, "prompt": "Return the", "max_tokens": 12, "temperature": 0, "logprobs": 2}
    whole = client(target).completions.create(**ask)
    chunks = list(client(target).completions.create(**ask, stream=True))
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == whole.choices[0].text
    assert len(whole.choices[0].logprobs.tokens) == whole.usage.completion_tokens


def several_prompts_are_scored_as_evaluations_do(target: Target) -> None:
    texts = ["Return the path", "Join two"]
    tokens = [tokens_of(target, text) for text in texts]
    ask: Any = {"model": target.model, "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True, "seed": 1}
    by_text = client(target).completions.create(prompt=texts, **ask)
    by_tokens = client(target).completions.create(prompt=tokens, **ask)
    streamed = client(target).completions.create(prompt=texts, **ask, stream=True)
    parts: list[list[float | None]] = [[], []]
    for chunk in streamed:
        for choice in chunk.choices:
            parts[choice.index] += choice.logprobs.token_logprobs if choice.logprobs else []
    for index, text in enumerate(texts):
        choice = by_text.choices[index]
        assert choice.text.startswith(text) and choice.text == by_tokens.choices[index].text
        own = choice.logprobs.token_logprobs
        assert own[0] is None and all(value <= 0 for value in own[1:]) and len(own) == len(tokens[index]) + 1
        for other in (by_tokens.choices[index].logprobs.token_logprobs, parts[index]):
            assert all(abs(one - two) < 1e-2 for one, two in zip(own[1:], other[1:], strict=True))


def texts_and_tokens_are_embedded(target: Target) -> None:
    made = client(target).embeddings.create(model=target.model, input=["join two paths", "dump an object as JSON"])
    assert len(made.data) == 2 and made.usage.prompt_tokens > 0
    assert abs(sum(value * value for value in made.data[0].embedding) - 1) < 1e-3
    assert made.data[0].embedding != made.data[1].embedding


def a_response_says_what_a_chat_says_streamed_or_not(target: Target) -> None:
    chat = client(target).chat.completions.create(model=target.model, messages=MESSAGES, **GREEDY)
    ask: Any = {"model": target.model, "input": QUESTION, **SHORT}
    whole = client(target).responses.create(**ask)
    with client(target).responses.stream(**ask) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
    assert whole.output_text == text == chat.choices[0].message.content
    assert whole.usage.total_tokens == chat.usage.total_tokens


def a_conversation_is_kept_by_the_gateway_and_its_blocks_by_a_worker(target: Target) -> None:
    turns: Any = {"model": target.model, "instructions": "Answer with care. " * 10, **SHORT}
    first = client(target).responses.create(input=QUESTION, **turns)
    second = client(target).responses.create(input="And then?", previous_response_id=first.id, **turns)
    said = [item.model_dump(exclude_none=True) for item in first.output]
    history: Any = [{"role": "user", "content": QUESTION}, *said, {"role": "user", "content": "And then?"}]
    by_hand = client(target).responses.create(input=history, store=False, **turns)
    assert second.output_text == by_hand.output_text
    assert second.usage.input_tokens == by_hand.usage.input_tokens > first.usage.input_tokens
    assert by_hand.usage.input_tokens_details.cached_tokens > 0
    assert client(target).responses.retrieve(second.id).previous_response_id == first.id
    assert client(target).responses.input_items.list(second.id).data
    client(target).responses.delete(first.id)


def a_response_matches_its_schema_streamed_or_not(target: Target) -> None:
    wanted: Any = {"format": {"type": "json_schema", "name": "answer", "schema": SCHEMA, "strict": True}}
    ask: Any = {"model": target.model, "input": QUESTION, "text": wanted, "temperature": 0}
    whole = client(target).responses.create(**ask)
    with client(target).responses.stream(**ask) as stream:
        assert stream.get_final_response().output_text == whole.output_text
    jsonschema.validate(json.loads(whole.output_text), SCHEMA)


def a_response_calls_and_takes_the_result_back(target: Target) -> None:
    tool = {"type": "function", "name": "look_up", "description": "Looks something up.", "parameters": SCHEMA}
    ask: Any = {"model": target.model, "tools": [tool], "max_output_tokens": 200, "temperature": 0}
    first = client(target).responses.create(input=QUESTION, tool_choice="required", **ask)
    calls = [item for item in first.output if item.type == "function_call"]
    assert calls and {call.name for call in calls} == {"look_up"}
    results: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "It joins."} for call in calls]
    second = client(target).responses.create(
        previous_response_id=first.id, input=results, tool_choice="none", **ask | {"max_output_tokens": 20}
    )
    assert [item.type for item in second.output] == ["message"]


def a_response_is_made_in_the_background_and_another_one_cancelled(target: Target) -> None:
    whole = client(target).responses.create(model=target.model, input=QUESTION, **SHORT)
    begun = client(target).responses.create(model=target.model, input=QUESTION, background=True, **SHORT)
    give_up_at = time.monotonic() + 60
    while (made := client(target).responses.retrieve(begun.id)).status == "in_progress":
        assert time.monotonic() < give_up_at
        time.sleep(0.05)
    assert made.output_text == whole.output_text
    long: Any = {"max_output_tokens": 2000, "extra_body": {"ignore_eos": True}}
    begun = client(target).responses.create(model=target.model, input=QUESTION, background=True, **long)
    assert client(target).responses.cancel(begun.id).status in ("cancelled", "in_progress")


def mistakes_are_the_errors_that_the_client_knows(target: Target) -> None:
    for wrong, kind in (({"model": "nobody"}, openai.NotFoundError), ({"temperature": 9}, openai.BadRequestError)):
        ask: Any = {"model": target.model, "messages": MESSAGES, **wrong}
        try:
            client(target).chat.completions.create(**ask)
        except kind as error:
            assert error.param == next(iter(wrong))
        else:
            raise AssertionError(f"{wrong} was taken")


STEPS: tuple[Step, ...] = (
    models_are_listed,
    a_chat_says_the_same_streamed,
    a_seed_gives_the_same_answer_again,
    log_probabilities_come_with_the_tokens,
    two_answers_differ_streamed_or_not,
    an_answer_matches_its_schema,
    a_tool_is_called_and_its_result_taken_back,
    a_completion_says_the_same_streamed_with_log_probabilities,
    several_prompts_are_scored_as_evaluations_do,
    texts_and_tokens_are_embedded,
    a_response_says_what_a_chat_says_streamed_or_not,
    a_conversation_is_kept_by_the_gateway_and_its_blocks_by_a_worker,
    a_response_matches_its_schema_streamed_or_not,
    a_response_calls_and_takes_the_result_back,
    a_response_is_made_in_the_background_and_another_one_cancelled,
    mistakes_are_the_errors_that_the_client_knows,
)

if __name__ == "__main__":
    main("openai", STEPS)
