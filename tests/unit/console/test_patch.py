"""Changes of a document, told as merge patches, make of the last one the next."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from armature.console.patch import merge_patch

NAMES = st.sampled_from("abcd")
LEAVES = st.none() | st.booleans() | st.integers(0, 3) | st.lists(st.integers(0, 2), max_size=2)
DOCUMENTS = st.recursive(
    st.dictionaries(NAMES, LEAVES, max_size=3), lambda inner: st.dictionaries(NAMES, LEAVES | inner, max_size=3)
)


def applied(document: Any, patch: Any) -> Any:
    """As RFC 7396 writes it in section 2."""
    if not isinstance(patch, dict):
        return patch
    made = dict(document) if isinstance(document, dict) else {}
    for name, value in patch.items():
        if value is None:
            made.pop(name, None)
        else:
            made[name] = applied(made.get(name), value)
    return made


def without_nulls(document: Any) -> Any:
    """Null and absent are the same to who reads a patched document."""
    if not isinstance(document, dict):
        return document
    return {name: without_nulls(value) for name, value in document.items() if value is not None}


@given(DOCUMENTS, DOCUMENTS)
def test_a_patch_makes_the_next_document_of_the_last(before: dict[str, Any], after: dict[str, Any]) -> None:
    made = applied(without_nulls(before), merge_patch(before, after))
    assert without_nulls(made) == without_nulls(after)


@given(DOCUMENTS)
def test_nothing_is_told_of_what_stays(document: dict[str, Any]) -> None:
    assert merge_patch(document, document) == {}
