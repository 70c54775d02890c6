"""The batched sampler against a slow one that treats each row alone, in the order transformers does."""

import math
from collections import Counter

import numpy as np
import pytest
import torch

from armature.blocks.hashing import BlockDigest
from armature.engines.torch.counters import counters, exponentials, token_steps
from armature.engines.torch.filters import edge_among
from armature.engines.torch.sampler import LOOK_AT, Sampler
from armature.scheduling.plan import SampledToken, Sequence, Slice
from armature.scheduling.request import Request, Sampling

VOCAB = 97
EOS = (5, 11)
CPU = torch.device("cpu")


def row(sampling: Sampling, prompt: list[int] | None = None, output: list[int] | None = None, name: str = "r") -> Slice:
    """A slice that samples the token after `output`."""
    prompt = prompt or [1, 2, 3]
    tokens = prompt + (output or [])
    request = Request(name, tokens, len(prompt), 1000, BlockDigest(bytes(16)), sampling)
    return Slice(Sequence(request, tokens, []), len(tokens) - 1, 1, samples=True)


def sample(logits: torch.Tensor, rows: list[Slice]) -> list[SampledToken]:
    return Sampler(logits.shape[-1], EOS, CPU).sample(logits, rows)


def random_logits(rows: int, vocab: int = VOCAB, seed: int = 0, spread: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * spread


def adjusted(logits: np.ndarray, one: Slice) -> np.ndarray:
    """Bias, minimum of tokens and penalties, one token at a time."""
    sampling, tokens = one.sequence.request.sampling, one.sequence.token_ids
    output = Counter(tokens[one.sequence.request.prompt_tokens :])
    logits = logits.astype(np.float64).copy()
    for token, bias in sampling.logit_bias.items():
        logits[token] += bias
    if sum(output.values()) < sampling.min_tokens:
        for token in {*sampling.stop_token_ids, *(() if sampling.ignore_eos else EOS)}:
            logits[token] = -math.inf
    for token in set(tokens):
        penalty = sampling.repetition_penalty
        logits[token] = logits[token] / penalty if logits[token] > 0 else logits[token] * penalty
        logits[token] -= output[token] * sampling.frequency_penalty + (output[token] > 0) * sampling.presence_penalty
    return logits


def kept_probabilities(logits: np.ndarray, one: Slice) -> np.ndarray:
    """The distribution that a token is drawn from."""
    sampling = one.sequence.request.sampling
    scaled = adjusted(logits, one) / sampling.temperature
    order = [int(token) for token in np.argsort(-scaled, kind="stable")]
    if sampling.top_k:
        order = order[: sampling.top_k]
    shares = softmax(scaled[order])
    if sampling.top_p < 1:
        before = np.cumsum(shares) - shares
        order = [token for token, mass in zip(order, before, strict=True) if mass < sampling.top_p]
    if sampling.min_p:
        likeliest = scaled[order[0]]
        order = [token for token in order if math.exp(scaled[token] - likeliest) >= sampling.min_p]
    kept = np.zeros(len(logits))
    kept[order] = softmax(scaled[order])
    return kept


def softmax(values: np.ndarray) -> np.ndarray:
    weights = np.exp(values - values.max())
    return weights / weights.sum()


def numbers_of(one: Slice, vocab: int = VOCAB) -> np.ndarray:
    """What the tokens of this slice are weighed with."""
    count = counters([one.sequence.request.sampling.seed], [one.sequence.output_tokens])
    return exponentials(torch.from_numpy(count[:, None]), token_steps(torch.arange(vocab)))[0].numpy()


def random_sampling(numbers: np.random.Generator) -> Sampling:
    """Any mixture of parameters, each one often at the value that turns it off."""

    def maybe(value: object, otherwise: object) -> object:
        return value if numbers.random() < 0.5 else otherwise

    return Sampling(
        temperature=float(maybe(numbers.uniform(0.2, 2.0), 1.0)),  # type: ignore[arg-type]
        top_p=float(maybe(numbers.uniform(0.05, 0.99), 1.0)),  # type: ignore[arg-type]
        top_k=int(maybe(numbers.integers(1, 40), 0)),  # type: ignore[call-overload]
        min_p=float(maybe(numbers.uniform(0.01, 0.5), 0.0)),  # type: ignore[arg-type]
        presence_penalty=float(maybe(numbers.uniform(-2, 2), 0.0)),  # type: ignore[arg-type]
        frequency_penalty=float(maybe(numbers.uniform(-2, 2), 0.0)),  # type: ignore[arg-type]
        repetition_penalty=float(maybe(numbers.uniform(0.5, 2), 1.0)),  # type: ignore[arg-type]
        seed=int(numbers.integers(0, 1 << 63)),
        logit_bias={int(numbers.integers(VOCAB)): 4.0, 7: -100.0} if numbers.random() < 0.3 else {},
        stop_token_ids=frozenset({23}),
        min_tokens=int(maybe(40, 0)),  # type: ignore[call-overload]
    )


def test_every_mixture_of_parameters_is_drawn_as_one_row_alone_would_be() -> None:
    numbers = np.random.default_rng(3)
    rows = [
        row(
            random_sampling(numbers),
            prompt=numbers.integers(0, VOCAB, 12).tolist(),
            output=numbers.integers(0, VOCAB, numbers.integers(0, 30)).tolist(),
            name=f"r{index}",
        )
        for index in range(400)
    ]
    logits = random_logits(len(rows))
    tokens = [one.token_id for one in sample(logits, rows)]
    for at, one in enumerate(rows):
        kept = kept_probabilities(logits[at].numpy(), one)
        ratios = kept / numbers_of(one)
        assert ratios[tokens[at]] >= (1 - 1e-4) * ratios.max(), one.sequence.request.sampling


def test_greedy_takes_the_largest_after_bias_and_penalties() -> None:
    numbers = np.random.default_rng(4)
    rows = []
    for index in range(100):
        drawn = random_sampling(numbers)
        greedy = Sampling(
            temperature=0.0,
            presence_penalty=drawn.presence_penalty,
            repetition_penalty=drawn.repetition_penalty,
            logit_bias=drawn.logit_bias,
            min_tokens=drawn.min_tokens,
            top_p=drawn.top_p,
        )
        rows.append(row(greedy, output=numbers.integers(0, VOCAB, 20).tolist(), name=f"r{index}"))
    logits = random_logits(len(rows), seed=1)
    expected = [int(adjusted(logits[at].numpy(), one).argmax()) for at, one in enumerate(rows)]
    assert [one.token_id for one in sample(logits, rows)] == expected


def test_a_row_is_sampled_the_same_in_any_company_and_order() -> None:
    numbers = np.random.default_rng(5)
    rows = [row(random_sampling(numbers), output=[4] * (index % 9), name=f"r{index}") for index in range(60)]
    logits = random_logits(len(rows), seed=2).bfloat16().float()
    together = [one.token_id for one in sample(logits, rows)]
    assert [sample(logits[at : at + 1], [one])[0].token_id for at, one in enumerate(rows)] == together
    order = numbers.permutation(len(rows))
    shuffled = sample(logits[torch.from_numpy(order)], [rows[at] for at in order])
    assert [one.token_id for one in shuffled] == [together[at] for at in order]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.7),
        Sampling(top_k=4),
        Sampling(top_p=0.8),
        Sampling(min_p=0.1, temperature=1.3),
        Sampling(top_k=10, top_p=0.7, min_p=0.02, temperature=1.5),
    ],
    ids=["plain", "temperature", "top_k", "top_p", "min_p", "all"],
)
def test_tokens_come_as_often_as_their_probability_says(sampling: Sampling) -> None:
    draws, vocab = 20_000, 24
    logits = random_logits(1, vocab, seed=6, spread=1.5)
    request = Request("r", [1] * (draws + 1), 1, draws, BlockDigest(bytes(16)), sampling)
    sequence = Sequence(request, [1] * (draws + 1), [])
    rows = [Slice(sequence, position, 1, samples=True) for position in range(draws)]
    found = np.bincount([one.token_id for one in sample(logits.expand(draws, vocab), rows)], minlength=vocab)
    expected = draws * kept_probabilities(logits[0].numpy(), row(sampling))
    assert not found[expected == 0].any()
    common = expected > 5
    statistic = ((found - expected)[common] ** 2 / expected[common]).sum()
    freedom = int(common.sum()) - 1
    # A chi-square value lies beyond its mean by five standard deviations about once in a million.
    assert statistic < freedom + 5 * math.sqrt(2 * freedom)


def test_a_wide_nucleus_is_found_beyond_the_first_looks() -> None:
    vocab = 5 * LOOK_AT[-1]
    logits = random_logits(3, vocab, seed=7, spread=0.1)
    rows = [row(Sampling(top_p=top_p, seed=1), name=str(top_p)) for top_p in (0.05, 0.9, 0.999)]
    ordered = logits.sort(dim=-1, descending=True).values
    smallest = edge_among(ordered, logits, [one.sequence.request.sampling for one in rows])
    for at, one in enumerate(rows):
        kept = kept_probabilities(logits[at].numpy(), one) > 0
        found = (logits[at] >= smallest[at]).numpy()
        # Sums in float32 and float64 may differ about the last token or two.
        assert abs(int(kept.sum()) - int(found.sum())) <= 2


@pytest.mark.parametrize("spread", [0.1, 1.0, 4.0])
def test_a_token_is_the_same_whether_few_or_all_are_looked_at(spread: float) -> None:
    """The reference sees every token; what is looked at here is a few of them, a thousand, or all."""
    vocab, numbers = 3 * LOOK_AT[-1], np.random.default_rng(11)
    rows = [
        row(
            Sampling(
                temperature=float(numbers.uniform(0.5, 1.5)),
                top_k=int(numbers.choice([0, 1, 40, LOOK_AT[0], 300, 2000])),
                top_p=float(numbers.choice([1.0, 0.5, 0.95])),
                min_p=float(numbers.choice([0.0, 0.05])),
                seed=index,
            ),
            name=f"r{index}",
        )
        for index in range(150)
    ]
    logits = random_logits(len(rows), vocab, seed=12, spread=spread)
    tokens = [one.token_id for one in sample(logits, rows)]
    for at, one in enumerate(rows):
        ratios = kept_probabilities(logits[at].numpy(), one) / numbers_of(one, vocab)
        # Whether the last token of a nucleus is in it may hang on the rounding of a sum.
        assert ratios[tokens[at]] >= (1 - 1e-4) * ratios.max(), one.sequence.request.sampling


def test_ties_at_the_edge_are_all_kept() -> None:
    logits = torch.zeros(1, 4 * LOOK_AT[0])
    rows = [row(Sampling(top_k=3, seed=seed), name=f"{seed}") for seed in range(200)]
    tokens = {one.token_id for one in sample(logits.expand(200, -1), rows)}
    assert max(tokens) > LOOK_AT[0] and len(tokens) > 50


def test_log_probabilities_are_those_of_the_bare_logits() -> None:
    logits = random_logits(4, seed=8)
    rows = [
        row(Sampling(temperature=0.0, top_logprobs=3), name="a"),
        row(Sampling(seed=9, temperature=0.5, logit_bias={3: 50.0}, top_logprobs=0), name="b"),
        row(Sampling(temperature=0.0), name="c"),
        row(Sampling(temperature=0.0, top_logprobs=5, presence_penalty=1.0), output=[1, 1], name="d"),
    ]
    found = sample(logits, rows)
    wanted = logits.log_softmax(-1)
    assert found[2].logprobs is None
    for at, count in ((0, 3), (1, 0), (3, 5)):
        report = found[at].logprobs
        assert report is not None
        assert report.token_ids[0] == found[at].token_id
        assert list(report.token_ids[1:]) == wanted[at].topk(count).indices.tolist()
        assert report.logprobs == pytest.approx(wanted[at, list(report.token_ids)].tolist(), abs=1e-5)
    assert found[1].token_id == 3


def test_logits_of_the_model_are_left_as_they_are() -> None:
    logits = random_logits(1)
    before = logits.clone()
    sample(logits, [row(Sampling(top_k=3, logit_bias={4: 9.0}, presence_penalty=1.0), output=[1])])
    assert torch.equal(logits, before)


@pytest.mark.parametrize("sampling", [Sampling(temperature=0.0), Sampling(), Sampling(top_k=3), Sampling(top_p=0.5)])
def test_logits_that_are_no_numbers_are_no_answer(sampling: Sampling) -> None:
    logits = random_logits(2)
    logits[1, 40] = math.nan
    with pytest.raises(FloatingPointError, match="not numbers"):
        sample(logits, [row(sampling, name="a"), row(sampling, name="b")])


def test_tokens_outside_the_vocabulary_are_ignored_in_bias_and_stops() -> None:
    sampling = Sampling(temperature=0.0, logit_bias={VOCAB + 2: 100.0}, stop_token_ids=frozenset({VOCAB}), min_tokens=5)
    logits = random_logits(2)
    found = sample(logits, [row(sampling, name="a"), row(Sampling(temperature=0.0), name="b")])
    assert found[1].token_id == int(logits[1].argmax())


def test_penalty_counts_follow_a_growing_output() -> None:
    sampling = Sampling(temperature=0.0, frequency_penalty=1.5, repetition_penalty=1.1)
    sampler = Sampler(VOCAB, EOS, CPU)
    logits = random_logits(1, seed=10, spread=0.3)
    one = row(sampling)
    for _ in range(60):
        expected = int(adjusted(logits[0].numpy(), one).argmax())
        token = sampler.sample(logits, [one])[0].token_id
        assert token == expected
        one.sequence.token_ids.append(token)
        one = Slice(one.sequence, one.start + 1, 1, samples=True)
    sampler.forget("r")
    assert sampler.sample(logits, [row(sampling)])[0].token_id == int(
        adjusted(logits[0].numpy(), row(sampling)).argmax()
    )


def test_a_moved_requests_output_counts_as_output() -> None:
    """A request that comes with output made elsewhere is sampled as if it had been here all along."""
    sampling = Sampling(seed=77, frequency_penalty=0.5, temperature=0.9)
    here = Sampler(VOCAB, EOS, CPU)
    one = row(sampling)
    for position in range(20):
        logits = random_logits(1, seed=position)
        token = here.sample(logits, [one])[0].token_id
        moved = row(sampling, output=one.sequence.token_ids[3:])
        assert sample(logits, [moved])[0].token_id == token
        one.sequence.token_ids.append(token)
        one = Slice(one.sequence, one.start + 1, 1, samples=True)


def test_a_logit_that_differs_in_its_last_digits_hardly_ever_changes_a_token() -> None:
    """Steps of different shapes round differently: a request that moves must not tell another story."""
    draws, vocab = 5_000, 512
    logits = random_logits(1, vocab, seed=10, spread=2.0)
    noise = random_logits(draws, vocab, seed=11, spread=1e-5)
    request = Request("r", [1] * (draws + 1), 1, draws, BlockDigest(bytes(16)), Sampling(seed=12))
    sequence = Sequence(request, [1] * (draws + 1), [])
    rows = [Slice(sequence, position, 1, samples=True) for position in range(draws)]
    here, there = sample(logits.expand(draws, vocab), rows), sample(logits + noise, rows)
    # About 0.05 are expected; one number per row against a running sum of probabilities changes about 5.
    assert sum(a.token_id != b.token_id for a, b in zip(here, there, strict=True)) <= 1


def test_random_numbers_are_exponential_and_do_not_repeat_between_neighbours() -> None:
    side = 60
    seeds, positions = np.divmod(np.arange(side * side), side)
    count = counters(seeds.tolist(), positions.tolist())
    assert len(set(count.tolist())) == side * side
    found = exponentials(torch.from_numpy(count[:, None]), token_steps(torch.arange(side))).double().numpy()
    assert found.min() > 0
    counts = np.histogram(np.exp(-found), bins=100, range=(0, 1))[0]
    expected = found.size / 100
    assert ((counts - expected) ** 2 / expected).sum() < 99 + 5 * math.sqrt(2 * 99)
    cube = np.exp(-found).reshape(side, side, side) - 0.5  # by seed, position, token
    neighbours = (cube[1:] * cube[:-1], cube[:, 1:] * cube[:, :-1], cube[:, :, 1:] * cube[:, :, :-1])
    diagonals = (cube[:, 1:, 1:] * cube[:, :-1, :-1], cube[:, 1:, :-1] * cube[:, :-1, 1:])
    for products in (*neighbours, *diagonals):
        assert abs(products.mean()) < 5 / 12 / math.sqrt(products.size)


def test_seeds_of_64_bits_are_all_different() -> None:
    found = counters([0, 1, (1 << 64) - 1, 1 << 63, 1 << 32], [0] * 5)
    assert len(set(found.tolist())) == 5


def test_a_token_has_the_same_number_whichever_others_are_asked_for() -> None:
    count = torch.from_numpy(counters([1, 2, 3], [7, 8, 9])[:, None])
    every = exponentials(count, token_steps(torch.arange(50_000)))
    some = torch.tensor([[0, 49_999, 5], [16_384, 16_383, 1], [32_767, 32_768, 9]])
    assert torch.equal(exponentials(count, token_steps(some)), every.gather(-1, some))
