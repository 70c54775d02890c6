"""Bodies of the OpenAI requests that the gateway reads, as msgspec structs.

Types are checked here, by the decoder; ranges and meanings in `rules`. Fields that are listed in neither struct are
ignored, as OpenAI-compatible servers do: clients send more than any server knows. Fields that would change the meaning
of the answer and are not implemented stand here so that `rules` can refuse them.
"""

import re
from typing import Any, TypeVar

import msgspec

from armature.openai.errors import ApiError
from armature.openai.extensions import ArmatureOptions, NvExt, unknown_key

B = TypeVar("B", bound=msgspec.Struct)


class ContentPart(msgspec.Struct):
    type: str
    text: str | None = None
    refusal: str | None = None


class CalledFunction(msgspec.Struct):
    name: str
    arguments: str = ""


class ToolCall(msgspec.Struct):
    id: str
    function: CalledFunction
    type: str = "function"


class Message(msgspec.Struct):
    role: str
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    function_call: Any = None
    audio: Any = None


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class JsonSchemaFormat(msgspec.Struct):
    name: str | None = None
    schema: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    strict: bool | None = None


class ResponseFormat(msgspec.Struct):
    type: str
    json_schema: JsonSchemaFormat | None = None


class StructuredOutputs(msgspec.Struct):
    """vLLM's. What it says of layout is left to us."""

    json: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    json_object: bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    structural_tag: Any = None


class Body(msgspec.Struct, kw_only=True):
    """What chat and completions have in common."""

    model: str
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    logit_bias: dict[str, float] | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    armature: ArmatureOptions | None = None
    nvext: NvExt | None = None
    prompt_cache_key: str | None = None
    n: int | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None

    best_of: int | None = None
    echo: bool | None = None
    prompt_logprobs: int | None = None
    tools: Any = None
    tool_choice: Any = None
    functions: Any = None
    function_call: Any = None
    modalities: Any = None
    audio: Any = None
    moderation: Any = None
    web_search_options: Any = None
    suffix: Any = None
    use_beam_search: Any = None
    truncate_prompt_tokens: Any = None
    continue_final_message: Any = None
    add_generation_prompt: Any = None
    bad_words: Any = None


class ChatBody(Body, kw_only=True):
    messages: list[Message]
    parallel_tool_calls: bool | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class CompletionBody(Body, kw_only=True):
    prompt: str | list[str | int | list[int]]
    logprobs: int | None = None


class BodyDecoder:
    """Decodes request bodies into one struct type."""

    def __init__(self, kind: type[B]) -> None:
        self._decoder = msgspec.json.Decoder(kind)

    def decode(self, data: bytes | bytearray) -> Any:
        """The body as a struct.

        Raises:
            ApiError: 400 that names the field, if the JSON is malformed or a type is wrong.
        """
        try:
            return self._decoder.decode(data)
        except msgspec.ValidationError as error:
            raise type_error(str(error)) from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            message = f"The body is not valid JSON: {str(error).removeprefix('JSON is malformed: ')}"
            raise ApiError(400, message, code="invalid_json") from None
        except RecursionError:
            raise ApiError(400, "The body is nested too deeply", code="invalid_json") from None


_PATH = re.compile(r" - at `(?:key in )?\$(.*?)`$")
_UNKNOWN = re.compile(r"^Object contains unknown field `(.*?)`")
_MISSING = re.compile(r"^Object missing required field `(.*?)`")


def type_error(message: str, within: str = "") -> ApiError:
    """A msgspec complaint in OpenAI's shape: `Expected `int`, got `str` - at `$.seed``. `$` is the field `within`."""
    path = _PATH.search(message)
    # `$.messages[0].role` is `messages[0].role` to the client; `$[...]` is a value of the body that no field names.
    where = (within + (path.group(1) if path else "")).lstrip(".").replace("[...]", "")
    what = message[: path.start()] if path else message
    if missing := _MISSING.match(what):
        param = f"{where}.{missing.group(1)}" if where else missing.group(1)
        return ApiError(400, f"Missing required parameter: '{param}'", param=param, code="missing_required_parameter")
    if unknown := _UNKNOWN.match(what):
        return unknown_key(f"{where}.{unknown.group(1)}")
    what = what.replace("`", "")
    if not where:
        return ApiError(400, f"The body must be a JSON object with known types: {what}", code="invalid_type")
    return ApiError(400, f"Invalid type for '{where}': {what[:1].lower()}{what[1:]}", param=where, code="invalid_type")
