"""HTTP requests as bytes: bodies in their heads, and heads, framings and paths that are wrong themselves."""

import random
from dataclasses import dataclass

from tests.campaigns.gateway.bodies import VALID, damaged, encoded, mutated, nested
from tests.support.conformity import ADMIN_KEY, KEY

_PLAIN_PATHS = (
    "/v1/models", "/v1/models/demo", "/v1/models/%00", "/v1/models/%ff%fe", "/v1/models/a/b/c", "/health", "/ready",
    "/live", "/metrics", "/docs", "/openapi.json", "/v1/responses/resp_1", "/v1/responses/%F0%9F?limit=%s&after=%00",
    "/v1/responses/resp_1/input_items?limit=0&order=x", "/admin/usage?from=2030-13-01",
    "/admin/usage?from=0001-01-01&to=9999-12-31", "/admin/tenants", "/admin/keys", "/admin/keys/x", "//", "/%2e%2e/",
    "/v1/chat/completions?x=%zz", "*", "http://other/v1/models",
)  # fmt: skip
_METHODS = ("GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "POST", "CONNECT", "FOO")
_HEADERS = (
    "content-type: text/plain", "content-type: application/json; charset=utf-16", "content-encoding: gzip",
    "x-request-timeout: -1", "x-request-timeout: 1ms", "timeout: 99999999999", "timeout: \xe9", "expect: 100-continue",
    "x-armature-session-id: " + "s" * 300, "traceparent: 00-" + "f" * 32 + "-" + "f" * 16 + "-01", "traceparent: 00-x",
    "x-armature-info: true", "content-type:", "authorization: Bearer", "authorization: Basic eA==",
    "x-filler: " + "a" * 20_000, "host:", "transfer-encoding: identity", "accept: image/png",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class HttpCase:
    """What is written to a connection of its own."""

    kind: str
    data: bytes
    must_answer: bool = True
    """A whole request: it gets a whole answer. Else the connection's other half is closed after it."""


def http_case(rng: random.Random) -> HttpCase:
    """The next case; equal generators give equal cases."""
    route = rng.choice([*VALID])
    match rng.choices(range(7), weights=(55, 14, 5, 6, 8, 6, 6))[0]:
        case 0:
            return HttpCase("mutated body", _request(route, encoded(mutated(rng, route))))
        case 1:
            return HttpCase("damaged body", _request(route, damaged(rng, encoded(mutated(rng, route)))))
        case 2:
            return HttpCase("random bytes", _request(route, rng.randbytes(rng.choice((0, 1, 30, 3000)))))
        case 3:
            return HttpCase("deep nesting", _request(route, nested(rng)))
        case 4:
            extra = tuple(rng.sample(_HEADERS, rng.randint(1, 2)))
            return HttpCase("odd headers", _request(route, encoded(mutated(rng, route)), extra))
        case 5:
            path, method = rng.choice(_PLAIN_PATHS), rng.choice(_METHODS)
            key = ADMIN_KEY if rng.random() < 0.5 else KEY
            body = encoded(mutated(rng, route)) if rng.random() < 0.3 else b""
            return HttpCase("other paths", _request(path, body, method=method, key=key), must_answer=False)
        case _:
            return HttpCase("broken framing", _broken(rng, route), must_answer=False)


def _request(route: str, body: bytes, extra: tuple[str, ...] = (), *, method: str = "POST", key: str = KEY) -> bytes:
    lines = [f"{method} {route} HTTP/1.1", "host: gateway", "connection: close", f"content-length: {len(body)}"]
    if not any(line.startswith("authorization") for line in extra):
        lines.append(f"authorization: Bearer {key}")
    return "\r\n".join([*lines, *extra, "", ""]).encode("latin-1") + body


def _broken(rng: random.Random, route: str) -> bytes:
    body = encoded(mutated(rng, route))
    head = f"POST {route} HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {KEY}\r\n".encode()
    chunked = head + b"transfer-encoding: chunked\r\n\r\n"
    whole = b"%x\r\n%b\r\n" % (len(body), body)
    match rng.randrange(12):
        case 0:
            return chunked + b"%x\r\n%b" % (len(body) + 50, body)  # ends early
        case 1:
            return chunked + rng.choice((b"zz\r\n", b"-1\r\n", b"fffffffffffffffff\r\n", b"5\r\nab")) + body
        case 2:
            return chunked + whole + b"0\r\nx-trailer: 1\r\n\r\n"
        case 3:
            return head + b"content-length: 10\r\ncontent-length: 20\r\n\r\n" + body
        case 4:
            return head + b"content-length: %d\r\ntransfer-encoding: chunked\r\n\r\n" % len(body) + whole + b"0\r\n\r\n"
        case 5:
            return head + b"content-length: %d\r\n\r\n" % (len(body) + 9) + body
        case 6:
            return head + b"content-length: x\r\n\r\n" + body
        case 7:
            return head[: rng.randrange(len(head))]
        case 8:
            return rng.randbytes(rng.choice((1, 100, 5000)))
        case 9:
            return head + b"content-length: 99999999999999999999\r\n\r\n"
        case 10:
            return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + rng.randbytes(60)
        case _:
            return damaged(rng, head + b"content-length: %d\r\n\r\n" % len(body)) + body
