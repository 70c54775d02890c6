"""LiteLLM as a client. It pins much, so it lives in a virtual environment of its own: `make tour` makes it."""

import json
import os
from typing import Any

from tests.tour.steps import QUESTION, SCHEMA, Step, Target, main

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # or it would ask the network for prices

import litellm

MESSAGES: Any = [{"role": "user", "content": QUESTION}]
GREEDY: Any = {"temperature": 0, "max_tokens": 30}


def place(target: Target, provider: str = "openai") -> dict[str, Any]:
    return {"model": f"{provider}/{target.model}", "api_base": f"{target.url}/v1", "api_key": target.key}


def a_chat_says_the_same_streamed(target: Target) -> None:
    whole: Any = litellm.completion(messages=MESSAGES, **place(target), **GREEDY)
    chunks: Any = litellm.completion(messages=MESSAGES, stream=True, **place(target), **GREEDY)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text and text == whole.choices[0].message.content
    assert whole.usage.completion_tokens > 0


def a_text_is_completed(target: Target) -> None:
    where = place(target, "text-completion-openai")
    done: Any = litellm.text_completion(prompt="Return the", **where, **GREEDY)
    assert done.choices[0].text


def texts_are_embedded(target: Target) -> None:
    made: Any = litellm.embedding(input=["join two paths", "dump JSON"], encoding_format="float", **place(target))
    assert len(made.data) == 2 and made.data[0]["embedding"] != made.data[1]["embedding"]


def an_answer_matches_its_schema(target: Target) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}
    done: Any = litellm.completion(messages=MESSAGES, response_format=wanted, temperature=0, **place(target))
    decoded = json.loads(done.choices[0].message.content)
    assert decoded.keys() == {"kind", "arguments"} and decoded["kind"] in ("function", "module")


def a_tool_is_called(target: Target) -> None:
    tool = {"type": "function", "function": {"name": "look_up", "parameters": SCHEMA}}
    ask: Any = {"messages": MESSAGES, "tools": [tool], "tool_choice": "required", "temperature": 0, "max_tokens": 200}
    done: Any = litellm.completion(**ask, **place(target))
    assert done.choices[0].finish_reason == "tool_calls"
    assert all(call.function.name == "look_up" for call in done.choices[0].message.tool_calls)
    chunks: Any = litellm.completion(**ask, **place(target), stream=True)
    rebuilt: Any = litellm.stream_chunk_builder(list(chunks), messages=MESSAGES)
    calls = [message.choices[0].message.tool_calls[0].function.arguments for message in (done, rebuilt)]
    assert calls[0] == calls[1]


def a_response_is_made(target: Target) -> None:
    made: Any = litellm.responses(input=QUESTION, max_output_tokens=30, temperature=0, **place(target))
    assert made.status in ("completed", "incomplete") and made.output[0].content[0].text


def a_message_is_made(target: Target) -> None:
    where = {**place(target, "anthropic"), "api_base": target.url}
    done: Any = litellm.completion(messages=MESSAGES, **where, **GREEDY)
    assert done.choices[0].message.content


def mistakes_are_the_errors_that_the_client_knows(target: Target) -> None:
    try:
        litellm.completion(messages=MESSAGES, **place(target) | {"model": "openai/nobody"})
    except litellm.NotFoundError:
        return
    raise AssertionError("an unknown model was taken")


STEPS: tuple[Step, ...] = (
    a_chat_says_the_same_streamed,
    a_text_is_completed,
    texts_are_embedded,
    an_answer_matches_its_schema,
    a_tool_is_called,
    a_response_is_made,
    a_message_is_made,
    mistakes_are_the_errors_that_the_client_knows,
)

if __name__ == "__main__":
    main("litellm", STEPS)
