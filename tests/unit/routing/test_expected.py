"""What is expected of workers lives for a while and no longer, and is never more than what was placed."""

from hypothesis import given
from hypothesis import strategies as st

from armature.routing.expected import ExpectedBlocks


def depths(expected: ExpectedBlocks, hashes: list[int], now_s: float) -> dict[str, int]:
    found: dict[str, int] = {}
    for depth, mask in expected.match(hashes, now_s):
        for slot, worker_id in enumerate(expected.slots):
            if mask >> slot & 1:
                assert found.get(worker_id, 0) <= depth
                found[worker_id] = depth
    return found


def test_a_placed_prompt_is_expected_as_far_as_it_is_shared() -> None:
    expected = ExpectedBlocks(ttl_s=10.0)
    expected.add("w1", [1, 2, 3, 4], 0.0)
    expected.add("w2", [1, 2, 9], 0.0)
    assert depths(expected, [1, 2, 3, 7], 1.0) == {"w1": 3, "w2": 2}
    assert depths(expected, [5], 1.0) == {}


def test_it_is_forgotten_between_half_and_all_of_its_time() -> None:
    expected = ExpectedBlocks(ttl_s=10.0)
    expected.add("w1", [1, 2], 100.0)
    assert depths(expected, [1, 2], 104.9) == {"w1": 2}
    assert depths(expected, [1, 2], 105.1) == {"w1": 2}
    assert depths(expected, [1, 2], 110.2) == {}


def test_a_long_silence_forgets_everything() -> None:
    expected = ExpectedBlocks(ttl_s=10.0)
    expected.add("w1", [1, 2], 100.0)
    assert depths(expected, [1, 2], 111.0) == {}


def test_of_two_generations_the_deeper_counts() -> None:
    expected = ExpectedBlocks(ttl_s=10.0)
    expected.add("w1", [1, 2, 3], 0.0)
    expected.add("w2", [1], 0.0)
    expected.add("w1", [1], 6.0)
    expected.add("w2", [1, 2], 6.0)
    assert depths(expected, [1, 2, 3], 6.0) == {"w1": 3, "w2": 2}


def test_a_worker_with_another_ones_bit_is_never_credited() -> None:
    expected = ExpectedBlocks(ttl_s=10.0)
    expected.add("old", [1, 2], 0.0)
    expected.forget()
    expected.add("new", [5], 0.0)
    assert depths(expected, [1, 2], 0.0) == {}
    assert depths(expected, [5], 0.0) == {"new": 1}


@given(st.lists(st.tuples(st.sampled_from("abc"), st.lists(st.integers(0, 1), max_size=5)), max_size=12))
def test_it_agrees_with_a_list_of_what_was_placed(placements: list[tuple[str, list[int]]]) -> None:
    """A block's hash is its whole prefix here, as it is in truth."""

    def hashes(bits: list[int]) -> list[int]:
        return [hash((2, *bits[: end + 1])) for end in range(len(bits))]

    expected = ExpectedBlocks(ttl_s=10.0)
    for number, (worker_id, bits) in enumerate(placements):
        prompt, best = hashes(bits), dict[str, int]()
        for earlier_id, earlier in placements[:number]:
            shared = sum(a == b for a, b in zip(hashes(earlier), prompt, strict=False))
            if shared:
                best[earlier_id] = max(best.get(earlier_id, 0), shared)
        assert depths(expected, prompt, 0.0) == best
        expected.add(worker_id, prompt, 0.0)
