"""Between the words of `armature.v1.Inference` and those of the gateway."""

from armature.openai import answers
from armature.openai.answer_reader import TOOL_CALLS
from armature.openai.assembler import LENGTH, Piece
from armature.openai.errors import invalid
from armature.openai.extensions import check_session
from armature.openai.grpc_chats import chat_in, tell, tools_in
from armature.openai.rules import (
    RANGES,
    Ask,
    ChatPrompt,
    Prompt,
    TextPrompt,
    TokenPrompt,
    check_ranges,
    check_stop,
)
from armature.openai.texts import check_number
from armature.openai.tools import NO_TOOLS
from armature.routing.hints import Hints
from armature.runtime.hints import hints_of
from armature.v1.common_pb2 import (
    FINISH_REASON_LENGTH,
    FINISH_REASON_STOP,
    FINISH_REASON_TOOL_CALLS,
    Grammar,
    Logprobs,
    SamplingParams,
    TokenLogprob,
)
from armature.v1.inference_pb2 import (
    EmbedRequest,
    GenerateRequest,
    GenerateResponse,
    TokenizeRequest,
    Usage,
)

_REASONS = {LENGTH: FINISH_REASON_LENGTH, TOOL_CALLS: FINISH_REASON_TOOL_CALLS}
_OPTIONAL = ("temperature", "top_p", "repetition_penalty")
_PLAIN = ("top_k", "min_p", "presence_penalty", "frequency_penalty", "min_tokens", "top_logprobs", "prompt_logprobs")


def ask_of(request: GenerateRequest) -> Ask:
    """Check a request.

    Raises:
        ApiError: 400 that names the field.
    """
    sampling = SamplingParams()
    sampling.CopyFrom(request.sampling)
    _check_sampling(sampling)
    if request.max_tokens > RANGES["max_tokens"].high:
        raise invalid("max_tokens", "it is too large")
    field, prompt = _prompt(request)
    tools = tools_in(request.chat) if field == "chat" else NO_TOOLS
    return Ask(
        model=request.model,
        prompt=prompt,
        prompt_field=field,
        sampling=sampling,
        max_tokens=request.max_tokens or None,
        stop=check_stop(request.stop),
        include_info=request.include_info,
        session_id=check_session("session_id", request.session_id),
        hints=_hints(request),
        num_answers=_num_answers(request.n),
        grammar=_grammar(request),
        tools=tools,
    )


def inputs_of(request: EmbedRequest) -> list[TextPrompt | TokenPrompt]:
    """What is to be embedded.

    Raises:
        ApiError: 400, there is too much or nothing of it.
    """
    check_number(len(request.inputs))
    return [
        TokenPrompt(one.tokens.ids) if one.WhichOneof("input") == "tokens" else TextPrompt(one.text)
        for one in request.inputs
    ]


def text_prompt_of(request: TokenizeRequest) -> TextPrompt | ChatPrompt:
    """What is to be tokenized.

    Raises:
        ApiError: 400, there is neither text nor chat, or the chat is not one.
    """
    if request.WhichOneof("input") is None:
        raise invalid("input", "one of prompt and chat must be set")
    return TextPrompt(request.prompt) if request.HasField("prompt") else chat_in(request.chat)


def response_of(request_id: str, piece: Piece, usage: answers.Usage | None) -> GenerateResponse:
    """A piece of the answer as it travels; the last of all has the usage."""
    response = GenerateResponse(
        request_id=request_id,
        choice_index=piece.index,
        token_ids=piece.token_ids,
        logprobs=[
            Logprobs(tokens=[TokenLogprob(token_id=token_id, logprob=value) for token_id, value in token])
            for token in piece.tokens
        ],
    )
    if piece.events is None:
        response.text = piece.text
    else:
        tell(piece.events, response)
    if piece.finish_reason is not None:
        response.finish_reason = _REASONS.get(piece.finish_reason, FINISH_REASON_STOP)
    if usage is not None:
        response.usage.CopyFrom(
            Usage(
                prompt_tokens=usage.prompt_tokens,
                completion_tokens=usage.completion_tokens,
                cached_tokens=usage.cached_tokens,
                reasoning_tokens=usage.reasoning_tokens,
            )
        )
    return response


def _hints(request: GenerateRequest) -> Hints:
    try:
        return hints_of(request.hints)
    except ValueError as error:
        raise invalid("hints", str(error)) from None


def _num_answers(n: int) -> int:
    check_ranges({"n": n or 1})
    return n or 1


def _grammar(request: GenerateRequest) -> Grammar | None:
    if not request.HasField("grammar"):
        return None
    if request.sampling.min_tokens:
        raise invalid("sampling.min_tokens", "not possible with a grammar, which says itself when the answer ends")
    return request.grammar


def _check_sampling(sampling: SamplingParams) -> None:
    values: dict[str, float | None] = {name: getattr(sampling, name) for name in _PLAIN}
    values |= {name: getattr(sampling, name) for name in _OPTIONAL if sampling.HasField(name)}
    check_ranges(values)
    if sampling.top_logprobs and not sampling.logprobs:
        raise invalid("sampling.top_logprobs", "only possible with logprobs")


def _prompt(request: GenerateRequest) -> tuple[str, Prompt]:
    kind = request.WhichOneof("input")
    if kind == "prompt" and request.prompt:
        return kind, TextPrompt(request.prompt)
    if kind == "tokens" and request.tokens.ids:
        return kind, TokenPrompt(request.tokens.ids)
    if kind == "chat" and request.chat.messages:
        return kind, chat_in(request.chat)
    raise invalid(kind or "input", "one of prompt, chat and tokens must be set and not empty")
