"""What a vLLM engine has to do: from what it tells after its steps, and from what it was given. Pure."""

from collections import deque
from dataclasses import dataclass

from armature.engines.vllm.surface import Stats, StepNews
from armature.performance.fit import StepFit
from armature.performance.step import StepShape
from armature.scheduling.request import EngineLoad, TokenOutput


@dataclass(slots=True, eq=False)
class _Prompt:
    tokens: int
    """Those to compute."""
    computed: int = 0


class LoadBook:
    """Counts requests and their tokens. vLLM says how much of prompts a step has computed, not of which: it is taken to
    be of those that came first, which is how vLLM goes about it."""

    def __init__(self, num_blocks: int) -> None:
        self._num_blocks = num_blocks
        self._fit = StepFit()
        self._prompts: dict[str, _Prompt] = {}
        self._contexts: dict[str, int] = {}
        self._context_tokens = 0
        self._stats = Stats(0, 0.0)
        self._computed_tokens = 0
        self._preemptions = 0

    def submitted(self, request_id: str, tokens: int) -> None:
        """A request is with vLLM."""
        self._prompts[request_id] = _Prompt(tokens)

    def told(self, output: TokenOutput) -> None:
        """Tokens have come, or the end."""
        request_id, made = output.request_id, len(output.token_ids)
        if made:
            prompt = self._prompts.pop(request_id, None)
            if prompt is not None:
                self._contexts[request_id] = prompt.tokens
                self._context_tokens += prompt.tokens
            self._contexts[request_id] += made
            self._context_tokens += made
        if output.finish_reason is not None:
            self._prompts.pop(request_id, None)
            self._context_tokens -= self._contexts.pop(request_id, 0)

    @property
    def waiting_prompts(self) -> int:
        """Requests that have no token yet."""
        return len(self._prompts)

    def stepped(self, stats: Stats) -> None:
        """vLLM has made a step."""
        self._stats = stats
        self._preemptions += stats.preemptions
        if stats.step is not None:
            pairs = self._compute(stats.step)
            shape = StepShape(stats.step.num_decodes, self._context_tokens, stats.step.prefill_tokens, pairs)
            self._fit.observe(shape, stats.step.elapsed_s)

    def _compute(self, step: StepNews) -> float:
        """Let prompts come forward by what a step has computed; return its pairs of tokens."""
        self._computed_tokens += step.prefill_tokens
        left, pairs = step.prefill_tokens, 0.0
        waiting = deque(self._prompts.values())
        while left and waiting:
            prompt = waiting.popleft()
            count = min(left, prompt.tokens - prompt.computed)
            pairs += count * (prompt.computed + count / 2)
            prompt.computed += count
            left -= count
        return pairs + left * left / 2

    def load(self, cached_blocks: int) -> EngineLoad:
        """All of it, by now."""
        live = len(self._prompts) + len(self._contexts)
        running = min(self._stats.running_seqs, live)
        used = round(self._stats.kv_usage * self._num_blocks) if live else 0
        return EngineLoad(
            running_seqs=running,
            waiting_seqs=live - running,
            waiting_prefill_tokens=sum([prompt.tokens - prompt.computed for prompt in self._prompts.values()]),
            free_blocks=self._num_blocks - used,
            total_blocks=self._num_blocks,
            cached_blocks=cached_blocks,
            prefill_tokens_per_s=self._fit.prefill_tokens_per_s,
            decode_step_s=self._fit.decode_step_s,
            step_costs=self._fit.model,
            computed_prefill_tokens=self._computed_tokens,
            preemptions=self._preemptions,
        )
