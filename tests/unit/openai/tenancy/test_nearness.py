"""Who sits at this machine, and who only seems to."""

import pytest

from armature.openai.tenancy.nearness import is_local


def scope(client: str | None = "127.0.0.1", host: str = "localhost:8000", **headers: str) -> dict[str, object]:
    told = {"host": host, **{name.replace("_", "-"): value for name, value in headers.items()}}
    return {
        "type": "http",
        "client": (client, 5) if client else None,
        "headers": [(name.encode(), value.encode()) for name, value in told.items()],
    }


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:8000", "127.0.0.1", "[::1]:8000", "[::1]"])
def test_loopback_by_its_own_names_is_here(host: str) -> None:
    assert is_local(scope(host=host))
    assert is_local(scope("::1", host=host, sec_fetch_site="same-origin"))


@pytest.mark.parametrize(
    "elsewhere",
    [
        scope("192.0.2.7"),
        scope(None),
        scope(host="evil.example"),  # a name that was made to point here
        scope(host="evil.example:8000"),
        scope(host="127.0.0.1.evil.example"),
        scope(host=""),
        scope(sec_fetch_site="cross-site"),
        scope(sec_fetch_site="same-site"),
        scope(x_forwarded_for="192.0.2.7"),
        scope(via="1.1 proxy"),
    ],
)
def test_everybody_else_is_not(elsewhere: dict[str, object]) -> None:
    assert not is_local(elsewhere)
