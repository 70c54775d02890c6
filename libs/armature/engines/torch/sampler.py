"""Chooses the next token of every slice that samples, all rows of a step together.

A row's choice depends on its logits, its parameters and the counter-based numbers of (seed, output position, token),
never on the other rows.

Every token has a random number of its own, and the largest ratio of probability to number wins (the Gumbel-max trick).
Logits differ in their last digits with the shape of the step that computed them; the winner then changes only if two
lead with nearly the same ratio. One number per row, held against a running sum of probabilities, is near the edge of
some token hundreds of times as often, and a request that moves would tell another story.
"""

import math
from collections.abc import Sequence as Items

import torch

from armature.engines.torch.counters import counters, exponentials, token_steps
from armature.engines.torch.filters import edge_among, has_filter
from armature.engines.torch.grammar_masks import GrammarMasks
from armature.engines.torch.penalties import LogitAdjuster, needs_adjusting, output_index
from armature.scheduling.plan import SampledToken, Slice
from armature.scheduling.request import Sampling, TokenLogprobs

GREEDY_BELOW = 1e-5
"""Temperatures under this would overflow float32 logits; they mean greedy."""

LOOK_AT = (64, 1024)
"""So many of the largest logits are looked at, one after the other, before all are sorted. Most filters keep fewer
than the first, and only what is kept needs random numbers."""

NUMBERS_AT_A_TIME = 1 << 23
"""Bounds the memory for random numbers, which are wider than logits."""
CPU_NUMBERS_AT_A_TIME = 1 << 18
"""What stays in a CPU's cache; four times as fast as all rows at once."""


class Sampler:
    """Samples from a step's logits. One per runner, since it keeps penalty counts by request."""

    def __init__(self, vocab_size: int, eos_token_ids: Items[int], device: torch.device) -> None:
        self._adjuster = LogitAdjuster(vocab_size, eos_token_ids, device)
        self._grammars = GrammarMasks(vocab_size, device)
        self._device = device
        numbers = CPU_NUMBERS_AT_A_TIME if device.type == "cpu" else NUMBERS_AT_A_TIME
        self._rows_at_a_time = max(1, numbers // vocab_size)
        self._all_steps = token_steps(torch.arange(vocab_size, device=device))

    def forget(self, request_id: str) -> None:
        self._adjuster.forget(request_id)

    def sample(self, logits: torch.Tensor, rows: Items[Slice]) -> list[SampledToken]:
        """One token for each row of `logits` `[rows, vocab]`, which belongs to the slice at the same place.

        Log probabilities are the model's own: of the logits before bias, penalties, grammars, temperature and filters.

        Raises:
            FloatingPointError: a row holds NaN.
        """
        if not rows:
            return []
        raw = logits.float()
        reports = [one.sequence.request.sampling.top_logprobs is not None for one in rows]
        # Found while a device may still be computing the logits.
        bound = self._grammars.follow(rows) if any(one.sequence.request.grammar is not None for one in rows) else None
        adjusted = raw
        if bound is not None or any(needs_adjusting(one) for one in rows):
            # Log probabilities need the raw logits again; `float` has copied them unless they were float32.
            adjusted = raw.clone() if any(reports) or raw is logits else raw
            self._adjuster.adjust(adjusted, rows)
        if bound is not None:
            bound.forbid(adjusted)
        tokens = self._choose(adjusted, rows)
        if any(reports):
            sampled = self._with_logprobs(raw, tokens, rows)
        else:
            sampled = [SampledToken(token) for token in tokens.tolist()]
        return sampled if bound is None else bound.accept(sampled)

    def _choose(self, logits: torch.Tensor, rows: Items[Slice]) -> torch.Tensor:
        random = [at for at, one in enumerate(rows) if one.sequence.request.sampling.temperature >= GREEDY_BELOW]
        if len(random) == len(rows):
            return self._draw(logits, rows)
        tokens = logits.argmax(-1)
        # NaN counts as the largest.
        _refuse_nan(logits.gather(-1, tokens[:, None]))
        if not random:
            return tokens
        index = torch.tensor(random, device=self._device)
        tokens[index] = self._draw(logits[index], [rows[at] for at in random])
        return tokens

    def _draw(self, logits: torch.Tensor, rows: Items[Slice]) -> torch.Tensor:
        """Tokens `[rows]` drawn from logits `[rows, vocab]` of rows with a temperature."""
        samplings = [one.sequence.request.sampling for one in rows]
        scaled = logits / self._column([sampling.temperature for sampling in samplings])
        count = counters([sampling.seed for sampling in samplings], [output_index(one) for one in rows])
        draw = _Draw(scaled, torch.from_numpy(count[:, None]).to(self._device), samplings)
        vocab_size = scaled.shape[-1]
        filtered = [at for at, sampling in enumerate(samplings) if has_filter(sampling, vocab_size)]
        bound = [at for at, one in enumerate(rows) if one.sequence.request.grammar is not None]
        # A grammar may leave a few tokens too; where it leaves many, it does not pay to look further.
        left = draw.among_largest(min(LOOK_AT[0], vocab_size), sorted({*filtered, *bound}))
        left = draw.among_largest(min(LOOK_AT[1], vocab_size), [at for at in left if at in filtered])
        draw.drop_small(left)
        others = draw.open_rows
        for first in range(0, len(others), self._rows_at_a_time):
            draw.among_all(others[first : first + self._rows_at_a_time], self._all_steps)
        _refuse_nan(draw.ratios)
        return draw.tokens

    def _with_logprobs(self, raw: torch.Tensor, tokens: torch.Tensor, rows: Items[Slice]) -> list[SampledToken]:
        wanted = [one.sequence.request.sampling.top_logprobs for one in rows]
        at = [row for row, count in enumerate(wanted) if count is not None]
        index = torch.tensor(at, device=self._device)
        logprobs = raw[index].log_softmax(-1)
        most = min(max(wanted[row] or 0 for row in at), raw.shape[-1])
        values, ids = logprobs.topk(most, dim=-1)
        own = logprobs.gather(-1, tokens[index, None])
        reports: dict[int, TokenLogprobs] = {}
        chosen: list[int] = tokens.tolist()
        for row, own_value, top_values, top_ids in zip(at, own.tolist(), values.tolist(), ids.tolist(), strict=True):
            count = wanted[row] or 0
            reports[row] = TokenLogprobs((chosen[row], *top_ids[:count]), (*own_value, *top_values[:count]))
        return [SampledToken(token, reports.get(row)) for row, token in enumerate(chosen)]

    def _column(self, values: Items[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self._device)[:, None]


class _Draw:
    """The choice of one token for each row, by the largest ratio of probability to number; rows may come in parts.

    Probabilities are relative to the row's likeliest token: the same whatever else is looked at.
    """

    def __init__(self, scaled: torch.Tensor, counters: torch.Tensor, samplings: Items[Sampling]) -> None:
        self._scaled = scaled
        self._counters = counters
        self._samplings = samplings
        self.tokens = torch.zeros(len(samplings), dtype=torch.int64, device=scaled.device)
        self.ratios = torch.zeros(len(samplings), device=scaled.device)
        self.open_rows = list(range(len(samplings)))
        """For which nothing has been drawn yet."""

    def among_largest(self, width: int, at: list[int]) -> list[int]:
        """Draw for those of the rows that keep none but their `width` largest logits; the others."""
        if not at:
            return []
        part = self._part(at)
        largest, tokens = part.topk(width, dim=-1)
        edge = edge_among(largest, part, [self._samplings[row] for row in at])
        last = largest[:, -1:]
        is_known = (last < edge) | last.isneginf() | largest[:, :1].isnan() | (width == part.shape[-1])
        known: list[bool] = is_known[:, 0].tolist()
        chosen = [place for place, is_known in enumerate(known) if is_known]
        if chosen:
            index = torch.tensor(chosen, device=part.device)
            kept, steps = largest[index], token_steps(tokens[index])
            # Never the likeliest, whose edge may be off by a rounding.
            kept[:, 1:].masked_fill_(kept[:, 1:] < edge[index], -math.inf)
            rows = [at[place] for place in chosen]
            self._choose(rows, kept, kept[:, :1], steps, tokens[index])
            self.open_rows = sorted({*self.open_rows}.difference(rows))
        return [row for row, is_known in zip(at, known, strict=True) if not is_known]

    def drop_small(self, at: list[int]) -> None:
        """Sort rows whole to find what they keep, and give everything else no chance."""
        for row in at:
            scaled = self._scaled[row : row + 1]
            edge = edge_among(scaled.sort(dim=-1, descending=True).values, scaled, [self._samplings[row]])
            scaled.masked_fill_(scaled < edge, -math.inf)

    def among_all(self, at: list[int], steps: torch.Tensor) -> None:
        """Draw for rows that keep everything; `steps` `[vocab]` are those of all tokens."""
        part = self._part(at)
        self._choose(at, part, part.amax(-1, keepdim=True), steps, None)

    def _choose(
        self,
        at: list[int],
        logits: torch.Tensor,
        largest: torch.Tensor,
        steps: torch.Tensor,
        tokens: torch.Tensor | None,
    ) -> None:
        index = torch.tensor(at, device=logits.device)
        ratios, places = ((logits - largest).exp_() / exponentials(self._counters[index], steps)).max(-1)
        self.ratios[index] = ratios
        self.tokens[index] = places if tokens is None else tokens.gather(-1, places[:, None])[:, 0]

    def _part(self, at: list[int]) -> torch.Tensor:
        """Some rows of the logits; not a copy if they follow one another."""
        if at[-1] - at[0] == len(at) - 1:
            return self._scaled[at[0] : at[-1] + 1]
        return self._scaled[torch.tensor(at, device=self._scaled.device)]


def _refuse_nan(values: torch.Tensor) -> None:
    """A token chosen from NaN would be a wrong answer that looks like one; the step fails instead."""
    if bool(values.isnan().any()):
        raise FloatingPointError("the model's logits are not numbers")
