"""A request that has been checked, tokenized and hashed: everything that serving it takes."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace

from armature.blocks.hashing import BlockDigest, pack_hashes
from armature.openai.parsers.families import Reading
from armature.openai.rules import ChatPrompt
from armature.openai.serving.catalog import ServedModel
from armature.openai.tenancy.admission import Admission
from armature.routing.hints import NO_HINTS, Hints
from armature.runtime.hints import hints_message
from armature.v1.common_pb2 import Grammar, SamplingParams
from armature.v1.router_pb2 import Query
from armature.v1.worker_pb2 import DecodeRequest, PrefillTarget

SEED_STEP = 0x9E3779B97F4A7C15
"""Between the seeds of two answers to a prompt; far from any that a client would count with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One request. Instants as the event loop counts them."""

    request_id: str
    model: ServedModel
    prompt: "array[int]"
    digests: list[BlockDigest]
    """Of the prompt's whole blocks."""
    sampling: SamplingParams
    """Complete: the seed is set, since the same one must go to every worker that serves this request."""
    max_tokens: int
    """0: only what is told of the prompt is wanted."""
    stop: tuple[str, ...]
    include_info: bool
    received_s: float
    due_s: float
    traceparent: str
    session_id: str = ""
    hints: Hints = NO_HINTS
    tenant: str = ""
    reading: Reading | None = None
    """How to tell apart what its answers say; None: all is content."""
    chat: ChatPrompt | None = None
    """Of what the prompt was rendered, if its next turn is to be prepared."""
    cache_namespace: str = ""
    num_answers: int = 1
    answer_index: int = 0
    """Which of the answers to the prompt this job is for."""
    grammar: Grammar | None = None
    """What the answer must match; None: anything."""
    admission: Admission | None = None
    """Is told what was used."""

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end the answer without showing in it."""
        eos = frozenset[int]() if self.sampling.ignore_eos else self.model.eos_ids
        return eos.union(self.sampling.stop_token_ids)

    def for_answer(self, index: int) -> "Job":
        """The job of one of the answers: the first keeps the seed, the others have seeds that follow from it."""
        if index == 0:
            return self
        sampling = SamplingParams()
        sampling.CopyFrom(self.sampling)
        sampling.seed = (sampling.seed + index * SEED_STEP) % 2**64
        sampling.ClearField("prompt_logprobs")  # which the first one is told
        request_id = f"{self.request_id}.{index}"
        return replace(self, request_id=request_id, answer_index=index, sampling=sampling, chat=None)

    def query(self, attempt_id: str, output: "array[int]", excluded: Sequence[str]) -> Query:
        """What to ask the router, with the `output` made so far as part of the prompt."""
        hasher = self.model.hasher
        digests = self.digests
        if output:
            hashed = len(digests) * hasher.block_size
            rest = self.prompt[hashed:] + output
            digests = digests + hasher.extend(digests[-1] if digests else self.model.root, rest)
        return Query(
            request_id=attempt_id,
            model=self.model.name,
            sequence_hashes=pack_hashes(digests),
            prompt_tokens=len(self.prompt) + len(output),
            max_tokens=max(1, self.max_tokens - len(output)),
            excluded_workers=excluded,
            traceparent=self.traceparent,
            tenant=self.tenant,
            session_id=self.session_id,
            hints=hints_message(self.hints),
            omit_reason=not self.include_info,
        )

    @property
    def wants_scores(self) -> bool:
        """Whether it is to be told how likely the prompt's tokens were."""
        return self.sampling.HasField("prompt_logprobs")

    def decode_request(
        self, attempt_id: str, output: "array[int]", prefill: PrefillTarget | None, timeout_s: float
    ) -> DecodeRequest:
        """What to ask a decode worker. Tokens are sampled by position, so it makes those that any other would."""
        return DecodeRequest(
            request_id=attempt_id,
            model=self.model.name,
            token_ids=(self.prompt + output if output else self.prompt).tobytes(),
            prompt_tokens=len(self.prompt),
            max_tokens=self.max_tokens or 1,  # a worker makes one at least
            sampling=self.sampling,
            cache_namespace=self.cache_namespace,
            tenant=self.tenant,
            timeout_s=timeout_s,
            traceparent=self.traceparent,
            prefill=prefill,
            grammar=self.grammar,
            priority=self.hints.priority,
            keep_s=self.hints.cache_ttl_s,
        )
