"""Top-k, top-p and min-p: each comes down to a smallest logit that is kept.

Ties at the edge are all kept, so that no order among equals matters.
"""

from collections.abc import Sequence as Items

import torch

from armature.scheduling.request import Sampling


def has_filter(sampling: Sampling, vocab_size: int) -> bool:
    return _has_top_k(sampling, vocab_size) or sampling.top_p < 1.0 or sampling.min_p > 0.0


def edge_among(largest: torch.Tensor, scaled: torch.Tensor, samplings: Items[Sampling]) -> torch.Tensor:
    """The smallest logit that each row keeps, as far as its largest logits tell, `[rows, 1]`.

    `largest` `[rows, n]` falls along the rows of `scaled` `[rows, vocab]`. Where the result is not above the last of
    `largest`, more tokens may be kept than those: look again among more, or all.
    """
    device, width, vocab_size = largest.device, largest.shape[-1], scaled.shape[-1]
    edge = torch.full((len(samplings), 1), -torch.inf, device=device)
    has_top_k = [_has_top_k(sampling, vocab_size) for sampling in samplings]
    has_top_p = [sampling.top_p < 1.0 for sampling in samplings]
    if any(has_top_k):
        last = [sampling.top_k if has else width + 1 for sampling, has in zip(samplings, has_top_k, strict=True)]
        place = torch.tensor(last, device=device)[:, None] - 1
        edge = torch.where(place < width, largest.gather(-1, place.clamp(max=width - 1)), edge)
    if any(has_top_p):
        edge = _top_p_edge(largest, scaled, edge, samplings)
    if any(sampling.min_p > 0.0 for sampling in samplings):
        # The likeliest token is never dropped, so its share is the same before and after top-k and top-p.
        share = torch.tensor([[sampling.min_p] for sampling in samplings], dtype=torch.float32, device=device)
        by_share = torch.where(share > 0, largest[:, :1] + share.log(), -torch.inf)
        # Of the others' edges nothing is known but that they are below what was looked at, unless top-p counts what
        # top-k keeps and that is not among it.
        is_open = [
            top_p and top_k and sampling.top_k > width
            for sampling, top_k, top_p in zip(samplings, has_top_k, has_top_p, strict=True)
        ]
        by_share[torch.tensor(is_open, device=device)] = -torch.inf
        edge = torch.maximum(edge, by_share)
    return edge


def _top_p_edge(
    largest: torch.Tensor, scaled: torch.Tensor, edge: torch.Tensor, samplings: Items[Sampling]
) -> torch.Tensor:
    """`edge`, which is top-k's, raised to the smallest logit of the likeliest tokens that together hold top-p."""
    vocab_size, width = scaled.shape[-1], largest.shape[-1]
    after_top_k = torch.tensor([_has_top_k(sampling, vocab_size) for sampling in samplings], device=largest.device)
    weight = largest.masked_fill(largest < edge, -torch.inf).logsumexp(-1)
    if not bool(after_top_k.all()):
        weight = torch.where(after_top_k, weight, scaled.logsumexp(-1))
    share = torch.tensor([[sampling.top_p] for sampling in samplings], dtype=torch.float32, device=largest.device)
    running = (largest - weight[:, None]).exp().cumsum(-1)
    # A token is kept if those before it do not hold the share yet; the first one always is.
    kept = (running < share).sum(-1, keepdim=True)
    by_share = torch.where(kept < width, largest.gather(-1, kept.clamp(max=width - 1)), -torch.inf)
    is_open = [sampling.top_k > width and _has_top_k(sampling, vocab_size) for sampling in samplings]
    by_share[torch.tensor([sampling.top_p >= 1.0 for sampling in samplings], device=largest.device)] = -torch.inf
    by_share[torch.tensor(is_open, device=largest.device)] = -torch.inf
    return torch.maximum(edge, by_share)


def _has_top_k(sampling: Sampling, vocab_size: int) -> bool:
    return 0 < sampling.top_k < vocab_size
