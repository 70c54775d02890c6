"""Chooses the next token of every slice that samples, all rows of a step together.

A row's choice depends on its logits, its parameters and the counter-based numbers of (seed, output position, token),
never on the other rows. Top-k, top-p and min-p each come down to a smallest logit that is kept, so ties at the edge are
all kept and no order among equals matters. Only rows with top-k or top-p pay for finding the largest logits.

Every token has a random number of its own, and the largest ratio of probability to number wins (the Gumbel-max trick).
Logits differ in their last digits with the shape of the step that computed them; the winner then changes only if two
lead with nearly the same ratio. One number per row, held against a running sum of probabilities, is near the edge of
some token hundreds of times as often, and a request that moves would tell another story.
"""

import math
from collections.abc import Sequence as Items

import torch

from armature.engines.torch.counters import counters, exponentials
from armature.engines.torch.grammar_masks import GrammarMasks
from armature.engines.torch.penalties import LogitAdjuster, needs_adjusting, output_index
from armature.scheduling.plan import SampledToken, Slice
from armature.scheduling.request import Sampling, TokenLogprobs

GREEDY_BELOW = 1e-5
"""Temperatures under this would overflow float32 logits; they mean greedy."""

NUCLEUS = 1024
"""Largest logits looked at first for top-p; only rows whose share is not reached among them are sorted whole."""

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
        smallest = self._smallest_kept(scaled, samplings)
        if smallest is not None:
            scaled.masked_fill_(scaled < smallest, -math.inf)
        count = counters([sampling.seed for sampling in samplings], [output_index(one) for one in rows])
        parts = zip(
            scaled.softmax(-1).split(self._rows_at_a_time),
            torch.from_numpy(count[:, None]).to(self._device).split(self._rows_at_a_time),
            strict=True,
        )
        best = [(shares / exponentials(own, scaled.shape[-1])).max(-1) for shares, own in parts]
        _refuse_nan(torch.cat([ratio for ratio, _ in best]))
        return torch.cat([token for _, token in best])

    def _smallest_kept(self, scaled: torch.Tensor, samplings: Items[Sampling]) -> torch.Tensor | None:
        """The smallest logit that each row keeps `[rows, 1]`; None if no row drops any."""
        vocab_size = scaled.shape[-1]
        has_top_k = [0 < sampling.top_k < vocab_size for sampling in samplings]
        has_top_p = [sampling.top_p < 1.0 for sampling in samplings]
        has_min_p = [sampling.min_p > 0.0 for sampling in samplings]
        if not any(has_top_k + has_top_p + has_min_p):
            return None
        smallest = torch.full((len(samplings), 1), -math.inf, device=self._device)
        largest_first = [at for at, top_k in enumerate(has_top_k) if top_k]
        if largest_first:
            self._apply_top_k(scaled, samplings, largest_first, smallest)
        nucleus = [at for at, top_p in enumerate(has_top_p) if top_p and not has_top_k[at]]
        if nucleus:
            self._apply_top_p(scaled, samplings, nucleus, smallest)
        if any(has_min_p):
            # The likeliest token is never dropped, so its share is the same before and after top-k and top-p.
            share = self._column([sampling.min_p for sampling in samplings])
            smallest = torch.maximum(smallest, scaled.amax(-1, keepdim=True) + share.log())
        return smallest

    def _apply_top_k(
        self, scaled: torch.Tensor, samplings: Items[Sampling], at: Items[int], smallest: torch.Tensor
    ) -> None:
        index = torch.tensor(at, device=self._device)
        chosen = [samplings[row] for row in at]
        part = scaled[index]
        largest = part.topk(max(sampling.top_k for sampling in chosen), dim=-1).values
        last = torch.tensor([[sampling.top_k - 1] for sampling in chosen], device=self._device)
        edge = largest.gather(-1, last)
        if any(sampling.top_p < 1.0 for sampling in chosen):
            weight = part.masked_fill_(part < edge, -math.inf).logsumexp(-1, keepdim=True)
            share = self._column([sampling.top_p for sampling in chosen])
            edge = torch.maximum(edge, _nucleus_edge(largest, weight, share)[0])
        smallest[index] = edge

    def _apply_top_p(
        self, scaled: torch.Tensor, samplings: Items[Sampling], at: Items[int], smallest: torch.Tensor
    ) -> None:
        index = torch.tensor(at, device=self._device)
        part = scaled[index]
        weight = part.logsumexp(-1, keepdim=True)
        share = self._column([samplings[row].top_p for row in at])
        edge, is_inside = _nucleus_edge(part.topk(min(NUCLEUS, part.shape[-1]), dim=-1).values, weight, share)
        smallest[index] = edge
        if part.shape[-1] > NUCLEUS and not bool(is_inside.all()):
            wide = (~is_inside[:, 0]).nonzero()[:, 0]
            ordered = part[wide].sort(dim=-1, descending=True).values
            smallest[index[wide]] = _nucleus_edge(ordered, weight[wide], share[wide])[0]

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


def _refuse_nan(values: torch.Tensor) -> None:
    """A token chosen from NaN would be a wrong answer that looks like one; the step fails instead."""
    if bool(values.isnan().any()):
        raise FloatingPointError("the model's logits are not numbers")


def _nucleus_edge(
    largest: torch.Tensor, weight: torch.Tensor, share: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Smallest logit of the likeliest tokens that together hold `share`, and whether they are all among `largest`.

    `largest` `[rows, n]` falls along its rows, `weight` is the log of the sum of exponentials of all logits; both
    results are `[rows, 1]`.
    """
    running = (largest - weight).exp().cumsum(-1)
    # A token is kept if those before it do not hold the share yet; the first one always is.
    kept = (running < share).sum(-1, keepdim=True)
    is_inside = kept < largest.shape[-1]
    return largest.gather(-1, kept.clamp(max=largest.shape[-1] - 1)), is_inside
