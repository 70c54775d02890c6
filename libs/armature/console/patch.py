"""JSON merge patches (RFC 7396): what has to be told of a document so that who has the last one gets the next."""

from collections.abc import Mapping
from typing import Any


def merge_patch(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """What makes `after` of `before`. A null says that a member is gone, so to readers null and absent are the same."""
    patch: dict[str, Any] = {name: None for name in before if name not in after}
    for name, value in after.items():
        known = before.get(name)
        if isinstance(value, dict) and isinstance(known, dict):
            if inner := merge_patch(known, value):
                patch[name] = inner
        elif value != known:
            patch[name] = value
    return patch
