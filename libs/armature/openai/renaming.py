"""Errors about a chat request, told in the words of the surface that it was made for.

Surfaces besides chat translate their bodies into one, so that what a value may be is decided in one place; the client
has never seen the names of chat's fields.
"""

import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager

from armature.openai.errors import ApiError

Names = Sequence[tuple[str, str]]
"""Patterns of chat's field names and what to write instead; the first that matches the whole name counts."""


@contextmanager
def renaming(names: Names) -> Generator[None, None, None]:
    """Rename the fields of errors that are raised inside."""
    try:
        yield
    except ApiError as error:
        raise renamed(error, names) from error


def renamed(error: ApiError, names: Names) -> ApiError:
    """The error about the client's own field; the same error if it has no other name for it."""
    for pattern, template in names:
        found = re.fullmatch(pattern, error.param or "")
        if found is not None and error.param is not None:
            param = found.expand(template)
            return ApiError(
                error.status,
                error.message.replace(f"'{error.param}'", f"'{param}'"),
                param=param,
                code=error.code,
                retry_after_s=error.retry_after_s,
            )
    return error
