"""Sealed metadata comes back whole or not at all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armature.transfer.nixl_metadata import seal, unseal


def test_what_was_sealed_comes_back() -> None:
    assert unseal(seal("armature-1", b"\x00opaque\xff")) == ("armature-1", b"\x00opaque\xff")


@given(st.binary(max_size=200))
def test_foreign_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="metadata"):
        unseal(data)


@given(st.data())
def test_a_cut_or_changed_copy_is_refused(data: st.DataObject) -> None:
    sealed = seal("armature-1", bytes(range(100)))
    length = data.draw(st.integers(0, len(sealed) - 1))
    with pytest.raises(ValueError, match="metadata"):
        unseal(sealed[:length])
    changed = bytearray(sealed)
    changed[length] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ValueError, match="metadata"):
        unseal(bytes(changed))
