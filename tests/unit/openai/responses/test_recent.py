"""Values that are kept for a while, against a list that does the same by hand."""

from hypothesis import given
from hypothesis import strategies as st

from armature.openai.responses.recent import ENTRY_BYTES, Recent

ROOM = 4 * (ENTRY_BYTES + 1 + 10)
TTL_S = 5.0
KEYS = st.sampled_from("abcdefg")
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), KEYS, st.integers(0, ROOM)),
        st.tuples(st.just("get"), KEYS, st.just(0)),
        st.tuples(st.just("remove"), KEYS, st.just(0)),
        st.tuples(st.just("wait"), KEYS, st.integers(1, 6)),
    ),
    max_size=40,
)


@given(ACTIONS)
def test_it_holds_the_newest_values_that_fit_and_have_not_expired(actions: list[tuple[str, str, int]]) -> None:
    recent, now_s = Recent(ROOM, TTL_S), 0.0
    kept: list[tuple[str, bytes, float]] = []  # the one used longest ago first
    for action, key, number in actions:
        found = next((entry for entry in kept if entry[0] == key), None)
        alive = found is not None and found[2] > now_s
        if action == "wait":
            now_s += number
        elif action == "put":
            value = bytes(number)
            kept = [entry for entry in kept if entry[0] != key]
            fits = size_of([(key, value, 0.0)]) <= ROOM
            assert recent.put(key, value, now_s) == fits
            if fits:
                kept.append((key, value, now_s + TTL_S))
            while size_of(kept) > ROOM or (fits and kept[0][2] <= now_s):
                kept.pop(0)
        elif action == "get":
            assert recent.get(key, now_s) == (found[1] if found and alive else None)
            kept = [entry for entry in kept if entry[0] != key]
            if found and alive:
                kept.append((key, found[1], now_s + TTL_S))
        else:
            assert recent.remove(key) == (found is not None)
            kept = [entry for entry in kept if entry[0] != key]
        assert len(recent) == len(kept)
        assert recent.size_bytes == size_of(kept) <= ROOM


def size_of(kept: list[tuple[str, bytes, float]]) -> int:
    return sum(ENTRY_BYTES + len(key) + len(value) for key, value, _ in kept)
