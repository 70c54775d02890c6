"""What requests may say: every mistake is a 400 that names its field, everything harmless is accepted."""

import json
from typing import Any

import pytest

from armature.openai.asks import chat_ask, completion_asks
from armature.openai.errors import ApiError
from armature.openai.rules import Ask, ChatPrompt, TextPrompt, TokenPrompt, check_against_model
from armature.openai.schema import BodyDecoder, ChatBody, CompletionBody
from armature.openai.tools import ToolUse
from armature.v1.common_pb2 import Grammar, TextChoice

CHAT = BodyDecoder(ChatBody)
COMPLETION = BodyDecoder(CompletionBody)
USER = {"role": "user", "content": "hi"}
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS, "strict": True}}


TIME = {"type": "function", "function": {"name": "get_time"}}


def allowing(*names: str, mode: str = "auto") -> dict[str, Any]:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


def called(arguments: str, **fields: Any) -> dict[str, Any]:
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [call]} | fields


def chat(**fields: Any) -> Ask:
    body = {"model": "m", "messages": [USER]} | fields
    ask = chat_ask(CHAT.decode(json.dumps(body).encode()))
    check_against_model(ask.sampling, ask.max_tokens, vocab_size=100)
    return ask


def completion(**fields: Any) -> Ask:
    body = {"model": "m", "prompt": "hi"} | fields
    (ask,) = completion_asks(COMPLETION.decode(json.dumps(body).encode()))
    check_against_model(ask.sampling, ask.max_tokens, vocab_size=100)
    return ask


WRONG_IN_BOTH: list[tuple[dict[str, Any], str, str]] = [
    ({"model": 5}, "model", "invalid_type"),
    ({"model": None}, "model", "invalid_type"),
    ({"max_tokens": 0}, "max_tokens", "invalid_value"),
    ({"max_tokens": -3}, "max_tokens", "invalid_value"),
    ({"max_tokens": 1.5}, "max_tokens", "invalid_type"),
    ({"max_tokens": "8"}, "max_tokens", "invalid_type"),
    ({"max_tokens": True}, "max_tokens", "invalid_type"),
    ({"temperature": -0.1}, "temperature", "invalid_value"),
    ({"temperature": 2.1}, "temperature", "invalid_value"),
    ({"temperature": "hot"}, "temperature", "invalid_type"),
    ({"top_p": 0}, "top_p", "invalid_value"),
    ({"top_p": 1.01}, "top_p", "invalid_value"),
    ({"top_k": -2}, "top_k", "invalid_value"),
    ({"min_p": 1.5}, "min_p", "invalid_value"),
    ({"presence_penalty": 3}, "presence_penalty", "invalid_value"),
    ({"frequency_penalty": -2.5}, "frequency_penalty", "invalid_value"),
    ({"repetition_penalty": 0}, "repetition_penalty", "invalid_value"),
    ({"repetition_penalty": 1e-38}, "repetition_penalty", "invalid_value"),
    ({"top_p": 1e-300}, "top_p", "invalid_value"),
    ({"seed": 2**70}, "seed", "invalid_value"),
    ({"seed": "x"}, "seed", "invalid_type"),
    ({"stop": ""}, "stop", "invalid_value"),
    ({"stop": ["a", ""]}, "stop", "invalid_value"),
    ({"stop": [f"{n}" for n in range(17)]}, "stop", "invalid_value"),
    ({"stop": "x" * 600}, "stop", "invalid_value"),
    ({"stop": [5]}, "stop[0]", "invalid_type"),
    ({"stop_token_ids": [100]}, "stop_token_ids", "invalid_value"),
    ({"stop_token_ids": [-1]}, "stop_token_ids", "invalid_value"),
    ({"stop_token_ids": [2**40]}, "stop_token_ids", "invalid_value"),
    ({"stop_token_ids": list(range(100)) * 2}, "stop_token_ids", "invalid_value"),
    ({"min_tokens": -1}, "min_tokens", "invalid_value"),
    ({"min_tokens": 9, "max_tokens": 8}, "min_tokens", "invalid_value"),
    ({"logit_bias": {"100": 1}}, "logit_bias", "invalid_value"),
    ({"logit_bias": {"99999999999": 1}}, "logit_bias", "invalid_value"),
    ({"logit_bias": {"x": 1}}, "logit_bias", "invalid_value"),
    ({"logit_bias": {"-1": 1}}, "logit_bias", "invalid_value"),
    ({"logit_bias": {"²": 1}}, "logit_bias", "invalid_value"),
    ({"logit_bias": {"5": 101}}, "logit_bias", "invalid_value"),
    ({"logit_bias": [1]}, "logit_bias", "invalid_type"),
    ({"stream": "yes"}, "stream", "invalid_type"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
    ({"armature": {"include_info": 1}}, "armature.include_info", "invalid_type"),
    ({"prompt_logprobs": 21}, "prompt_logprobs", "invalid_value"),
    ({"prompt_logprobs": -1}, "prompt_logprobs", "invalid_value"),
    ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs", "invalid_value"),
    ({"n": 0}, "n", "invalid_value"),
    ({"n": 17}, "n", "invalid_value"),
    ({"n": "2"}, "n", "invalid_type"),
    ({"best_of": 0}, "best_of", "invalid_value"),
    ({"best_of": 17}, "best_of", "invalid_value"),
    ({"suffix": "end"}, "suffix", "unsupported_parameter"),
    ({"functions": [{}]}, "functions", "unsupported_parameter"),
    ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
    ({"response_format": {}}, "response_format.type", "missing_required_parameter"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "invalid_value"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
        "response_format.json_schema.schema",
        "invalid_value",
    ),
    ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex", "invalid_value"),
    ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs.choice", "invalid_value"),
    (
        {"structured_outputs": {"structural_tag": {"a": 1}}},
        "structured_outputs.structural_tag",
        "unsupported_parameter",
    ),
    ({"guided_choice": "a"}, "guided_choice", "invalid_type"),
    ({"guided_regex": "a", "min_tokens": 2}, "min_tokens", "invalid_value"),
    ({"modalities": ["text", "audio"]}, "modalities", "unsupported_parameter"),
    ({"audio": {"voice": "x"}}, "audio", "unsupported_parameter"),
    ({"use_beam_search": True}, "use_beam_search", "unsupported_parameter"),
]

WRONG_CHATS: list[tuple[dict[str, Any], str, str]] = [
    ({"messages": []}, "messages", "invalid_value"),
    ({"messages": "hi"}, "messages", "invalid_type"),
    ({"messages": ["hi"]}, "messages[0]", "invalid_type"),
    ({"messages": [{"content": "x"}]}, "messages[0].role", "missing_required_parameter"),
    ({"messages": [USER, {"role": "robot", "content": "x"}]}, "messages[1].role", "invalid_value"),
    ({"messages": [{"role": "function", "content": "x"}]}, "messages[0].role", "unsupported_parameter"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id", "invalid_value"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "invalid_value"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "invalid_value"),
    ({"messages": [{"role": "user", "content": []}]}, "messages[0].content", "invalid_value"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "invalid_type"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages[0].content[0].type",
        "unsupported_parameter",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        "messages[0].content[0].text",
        "invalid_value",
    ),
    (
        {"messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}]},
        "messages[0].tool_calls[0].id",
        "missing_required_parameter",
    ),
    ({"tools": [WEATHER], "tool_choice": allowing()}, "tool_choice.allowed_tools.tools", "invalid_value"),
    ({"tools": [WEATHER], "tool_choice": allowing("other")}, "tool_choice.allowed_tools.tools", "invalid_value"),
    ({"tools": [WEATHER], "tool_choice": {"type": "allowed_tools"}}, "tool_choice.allowed_tools", "invalid_value"),
    ({"moderation": {}}, "moderation", "unsupported_parameter"),
    ({"messages": [{**USER, "function_call": {"name": "f"}}]}, "messages[0].function_call", "unsupported_parameter"),
    ({"functions": [{"name": "f"}]}, "functions", "unsupported_parameter"),
    ({"function_call": "f"}, "function_call", "unsupported_parameter"),
    ({"tools": {}, "tool_choice": "required"}, "tool_choice", "invalid_value"),
    ({"tools": {"type": "function"}}, "tools", "invalid_value"),
    ({"tools": [WEATHER] * 257}, "tools", "invalid_value"),
    ({"tools": [{"type": "retrieval"}]}, "tools[0].type", "invalid_value"),
    ({"tools": ["f"]}, "tools[0].type", "invalid_value"),
    ({"tools": [{"type": "function"}]}, "tools[0].function", "invalid_value"),
    ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name", "invalid_value"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "invalid_value"),
    ({"tools": [WEATHER, WEATHER]}, "tools[1].function.name", "invalid_value"),
    (
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]},
        "tools[0].function.parameters",
        "invalid_value",
    ),
    ({"tools": [WEATHER], "tool_choice": "any"}, "tool_choice", "invalid_value"),
    ({"tools": [WEATHER], "tool_choice": 7}, "tool_choice", "invalid_value"),
    ({"tools": [WEATHER], "tool_choice": {"type": "function"}}, "tool_choice", "invalid_value"),
    (
        {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "g"}}},
        "tool_choice",
        "invalid_value",
    ),
    ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
    ({"parallel_tool_calls": "no"}, "parallel_tool_calls", "invalid_type"),
    ({"max_completion_tokens": 0}, "max_completion_tokens", "invalid_value"),
    ({"best_of": 3}, "best_of", "unsupported_parameter"),
    ({"echo": True}, "echo", "unsupported_parameter"),
    ({"logprobs": 2}, "logprobs", "invalid_type"),
    ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
    ({"logprobs": True, "top_logprobs": -1}, "top_logprobs", "invalid_value"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs", "invalid_value"),
    ({"chat_template_kwargs": {"a-b": 1}}, "chat_template_kwargs", "invalid_value"),
]

WRONG_COMPLETIONS: list[tuple[dict[str, Any], str, str]] = [
    ({"prompt": ""}, "prompt", "invalid_value"),
    ({"prompt": []}, "prompt", "invalid_value"),
    ({"prompt": [""]}, "prompt", "invalid_value"),
    ({"prompt": [[]]}, "prompt", "invalid_value"),
    ({"prompt": None}, "prompt", "invalid_type"),
    ({"prompt": {"text": "x"}}, "prompt", "invalid_type"),
    ({"prompt": ["a", ""]}, "prompt[1]", "invalid_value"),
    ({"prompt": [[1], []]}, "prompt[1]", "invalid_value"),
    ({"prompt": ["a", 5]}, "prompt[1]", "invalid_value"),
    ({"prompt": ["a"] * 1025}, "prompt", "invalid_value"),
    ({"prompt": ["a"] * 513, "n": 2}, "prompt", "invalid_value"),
    ({"max_tokens": 0}, "max_tokens", "invalid_value"),
    ({"max_tokens": -1, "echo": True}, "max_tokens", "invalid_value"),
    ({"prompt": [True]}, "prompt[0]", "invalid_type"),
    ({"logprobs": True}, "logprobs", "invalid_type"),
    ({"logprobs": -1}, "logprobs", "invalid_value"),
    ({"logprobs": 21}, "logprobs", "invalid_value"),
    ({"n": 3, "best_of": 2}, "best_of", "invalid_value"),
    ({"best_of": 2, "stream": True}, "best_of", "invalid_value"),
    ({"tools": [WEATHER]}, "tools", "unsupported_parameter"),
    ({"tool_choice": "required"}, "tool_choice", "unsupported_parameter"),
]


@pytest.mark.parametrize(
    ("fields", "prompts", "max_tokens", "scores"),
    [
        ({"prompt": ["a", "b"]}, [TextPrompt("a"), TextPrompt("b")], 16, None),
        ({"prompt": [[1, 2], [3]], "max_tokens": 3}, [TokenPrompt([1, 2]), TokenPrompt([3])], 3, None),
        ({"prompt": ["a", [3]]}, [TextPrompt("a"), TokenPrompt([3])], 16, None),
        ({"prompt": [1, 2]}, [TokenPrompt([1, 2])], 16, None),
        ({"echo": True, "logprobs": 1, "max_tokens": 0}, [TextPrompt("hi")], 0, 1),
        ({"echo": True, "logprobs": 0}, [TextPrompt("hi")], 16, 0),
        ({"echo": True, "logprobs": 1, "prompt_logprobs": 4}, [TextPrompt("hi")], 16, 4),
        ({"prompt_logprobs": 0, "max_tokens": 0}, [TextPrompt("hi")], 0, 0),
        ({"echo": True}, [TextPrompt("hi")], 16, None),
    ],
    ids=str,
)
def test_a_completion_asks_once_for_each_prompt(
    fields: dict[str, Any], prompts: list[Any], max_tokens: int, scores: int | None
) -> None:
    asks = completion_asks(COMPLETION.decode(json.dumps({"model": "m", "prompt": "hi"} | fields).encode()))
    assert [ask.prompt for ask in asks] == prompts
    assert {ask.max_tokens for ask in asks} == {max_tokens}
    for ask in asks:
        sampling = ask.sampling
        assert (sampling.prompt_logprobs if sampling.HasField("prompt_logprobs") else None) == scores
    assert len({id(ask.sampling) for ask in asks}) == len(asks), "each prompt gets a seed of its own"


HARMLESS: list[dict[str, Any]] = [
    {"user": "me", "metadata": {"a": "b"}, "store": True, "service_tier": "auto", "parallel_tool_calls": False},
    {"safety_identifier": "x", "prompt_cache_key": "y", "prediction": None, "verbosity": "low", "unheard_of": [1]},
    {"n": 1, "best_of": 1, "tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "echo": False},
    {"temperature": None, "top_p": None, "max_tokens": None, "stop": None, "logit_bias": None, "stream_options": None},
    {"temperature": 0, "top_p": 1, "top_k": -1, "min_p": 0.5, "seed": -1, "stop": "x", "logit_bias": {"7": -100}},
    {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    {"ignore_eos": True, "min_tokens": 3, "max_tokens": 3, "stop_token_ids": [99], "repetition_penalty": 1.2},
]


@pytest.mark.parametrize(("fields", "param", "code"), [*WRONG_IN_BOTH, *WRONG_CHATS], ids=str)
def test_a_wrong_chat_request_is_refused_by_field(fields: dict[str, Any], param: str, code: str) -> None:
    refused(chat, fields, param, code)


@pytest.mark.parametrize(("fields", "param", "code"), [*WRONG_IN_BOTH, *WRONG_COMPLETIONS], ids=str)
def test_a_wrong_completion_request_is_refused_by_field(fields: dict[str, Any], param: str, code: str) -> None:
    refused(completion, fields, param, code)


def refused(make: Any, fields: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(ApiError) as caught:
        make(**fields)
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, param, code)
    assert param.partition(".")[0].partition("[")[0] in caught.value.message


@pytest.mark.parametrize("fields", HARMLESS, ids=str)
def test_harmless_fields_are_accepted(fields: dict[str, Any]) -> None:
    assert chat(**fields).model == completion(**fields).model == "m"


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[1]", b"null", b'{"model": "m", "messages": [{]}', b"\xff\xfe", b'{"model":"\\ud800"}', b"[" * 9999],
)
def test_what_is_no_json_object_is_refused(data: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        CHAT.decode(data)
    assert caught.value.status == 400
    assert caught.value.code in ("invalid_json", "invalid_type")


def test_parameters_arrive_as_they_were_sent() -> None:
    sampling = chat(
        temperature=0.5, top_p=0.25, top_k=7, min_p=0.125, presence_penalty=1, frequency_penalty=-1, seed=11,
        repetition_penalty=1.5, logit_bias={"3": -4}, logprobs=True, top_logprobs=2, stop_token_ids=[9],
        ignore_eos=True, min_tokens=2,
    ).sampling  # fmt: skip
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.25, 7, 0.125)
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) == (1, -1, 1.5)
    assert (sampling.seed, dict(sampling.logit_bias), sampling.logprobs, sampling.top_logprobs) == (
        11,
        {3: -4},
        True,
        2,
    )
    assert (list(sampling.stop_token_ids), sampling.ignore_eos, sampling.min_tokens) == ([9], True, 2)


def test_what_was_not_sent_is_left_to_the_default() -> None:
    sampling = chat().sampling
    assert not any(map(sampling.HasField, ("temperature", "top_p", "repetition_penalty", "seed")))


def test_zero_temperature_is_not_the_default() -> None:
    assert chat(temperature=0).sampling.HasField("temperature")


def test_limits_have_the_apis_defaults() -> None:
    assert chat().max_tokens is None
    assert chat(max_tokens=5, max_completion_tokens=6).max_tokens == 6
    assert completion().max_tokens == 16


def test_negative_seeds_are_as_good_as_any() -> None:
    assert chat(seed=-1).sampling.seed == 2**64 - 1


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("text", TextPrompt("text")),
        (["text"], TextPrompt("text")),
        ([1, 2], TokenPrompt([1, 2])),
        ([[1, 2]], TokenPrompt([1, 2])),
    ],
)
def test_prompts_are_text_or_tokens(prompt: Any, expected: Any) -> None:
    assert completion(prompt=prompt).prompt == expected


def test_messages_are_rendered_as_role_and_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    ask = chat(
        messages=[{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts, "name": "Ann"}],
        reasoning_effort="low",
        chat_template_kwargs={"enable_thinking": False},
    )
    assert ask.prompt == ChatPrompt(
        [{"role": "system", "content": "be brief"}, {"role": "user", "content": "a\nb", "name": "Ann"}],
        {"enable_thinking": False, "reasoning_effort": "low"},
    )


def test_no_effort_means_no_thinking_unless_the_templates_variables_say_so() -> None:
    prompt = chat(reasoning_effort="none").prompt
    assert isinstance(prompt, ChatPrompt)
    assert prompt.variables == {"enable_thinking": False, "thinking": False, "reasoning_effort": "none"}
    prompt = chat(reasoning_effort="none", chat_template_kwargs={"thinking": True}).prompt
    assert isinstance(prompt, ChatPrompt)
    assert prompt.variables["thinking"] is True


@pytest.mark.parametrize(
    "said", [{"content": None, "refusal": "No."}, {"content": [{"type": "refusal", "refusal": "No."}]}]
)
def test_an_answer_that_another_model_refused_to_give_stays_in_the_conversation(said: dict[str, Any]) -> None:
    prompt = chat(messages=[USER, {"role": "assistant", **said}, USER]).prompt
    assert isinstance(prompt, ChatPrompt)
    assert prompt.messages[1] == {"role": "assistant", "content": "No."}


def test_calls_and_their_results_are_rendered_as_templates_expect_them() -> None:
    result = {"role": "tool", "tool_call_id": "call_1", "content": "22 °C"}
    ask = chat(messages=[USER, called('{"city": "Paris"}', reasoning_content="Hm."), result], tools=[WEATHER])
    assert isinstance(ask.prompt, ChatPrompt)
    assert ask.prompt.messages[1:] == [
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "Hm.",
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "get_weather", "arguments": {"city": "Paris"}},
                }
            ],
        },
        {**result, "name": "get_weather"},
    ]
    assert ask.prompt.variables == {"tools": [WEATHER]}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ToolUse()),
        ({"tools": None, "tool_choice": "auto"}, ToolUse()),
        ({"tools": [WEATHER], "tool_choice": "none"}, ToolUse()),
        ({"tools": [WEATHER]}, ToolUse([WEATHER], {"get_weather": PARAMETERS})),
        (
            {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False},
            ToolUse([WEATHER], {"get_weather": PARAMETERS}, ("get_weather",), is_parallel=False),
        ),
        (
            {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "get_weather"}}},
            ToolUse([WEATHER], {"get_weather": PARAMETERS}, ("get_weather",)),
        ),
        (
            {"tools": [TIME, WEATHER], "tool_choice": allowing("get_weather")},
            ToolUse([WEATHER], {"get_weather": PARAMETERS}),
        ),
        (
            {"tools": [WEATHER, TIME], "tool_choice": allowing("get_time", "get_weather", mode="required")},
            ToolUse([WEATHER, TIME], {"get_weather": PARAMETERS, "get_time": {}}, ("get_weather", "get_time")),
        ),
    ],
)
def test_the_choice_says_whether_functions_may_or_must_be_called(fields: dict[str, Any], expected: ToolUse) -> None:
    assert chat(**fields).tools == expected


def test_stop_strings_are_told_once() -> None:
    assert chat(stop=["a", "b", "a"]).stop == ("a", "b")
    assert chat(stop="a").stop == ("a",)


SCHEMA = {"type": "object", "properties": {"größe": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("fields", "grammar"),
    [
        ({"response_format": {"type": "json_object"}}, Grammar(json_object=True)),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": SCHEMA, "strict": True},
                }
            },
            Grammar(json_schema=json.dumps(SCHEMA)),
        ),
        ({"guided_json": SCHEMA}, Grammar(json_schema=json.dumps(SCHEMA))),
        ({"guided_json": json.dumps(SCHEMA)}, Grammar(json_schema=json.dumps(SCHEMA))),
        ({"guided_regex": "a+"}, Grammar(regex="a+")),
        ({"guided_grammar": 'start: "a"'}, Grammar(ebnf='start: "a"')),
        ({"guided_choice": ["a", "b"]}, Grammar(choice=TextChoice(texts=["a", "b"]))),
        ({"structured_outputs": {"json": SCHEMA}}, Grammar(json_schema=json.dumps(SCHEMA))),
        ({"structured_outputs": {"json_object": True}}, Grammar(json_object=True)),
        ({"response_format": {"type": "text"}, "guided_json": None, "structured_outputs": {}}, None),
    ],
    ids=str,
)
def test_every_way_of_asking_for_structure_ends_in_a_grammar(fields: dict[str, Any], grammar: Grammar | None) -> None:
    assert chat(**fields).grammar == completion(**fields).grammar == grammar


def test_so_many_answers_are_made_as_are_wanted_or_as_the_best_are_chosen_from() -> None:
    assert chat().num_answers == completion(best_of=1).num_answers == 1
    assert chat(n=3).num_answers == completion(n=3).num_answers == completion(n=2, best_of=3).num_answers == 3
    assert completion(n=2, best_of=3).sampling.logprobs and not completion(n=3, best_of=3).sampling.logprobs
