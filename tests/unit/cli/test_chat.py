"""`armature chat` against a server that answers as the gateway does."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from armature.cli.chat import describe
from armature.cli.main import main

INFO = {
    "decode_worker": "decode-1", "prefill_worker": "prefill-1", "cached_tokens": 16, "transferred_tokens": 32,
    "transferred_bytes": 65536, "transport": "nixl", "transfer_s": 0.0015, "ttft_s": 0.0421, "reason": "least seconds",
}  # fmt: skip


class Gateway(BaseHTTPRequestHandler):
    requests: list[dict[str, Any]]
    broken = False

    def do_GET(self) -> None:
        self._answer(200, json.dumps({"data": [{"id": "demo"}]}))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.requests.append(body)
        if body["model"] != "demo":
            self._answer(404, json.dumps({"error": {"message": "no model 'x' here; there is 'demo'"}}))
            return
        chunks: list[dict[str, Any]] = [
            {"choices": [{"delta": {"content": text}}]} for text in ("Join [b]two[/b]", " paths.")
        ]
        if self.broken:
            chunks.append({"error": {"message": "the worker died"}})
        chunks.append({"choices": [], "usage": {"prompt_tokens": 50}, "armature": INFO})
        lines = [": keep-alive", *(f"data: {json.dumps(chunk)}" for chunk in chunks), "data: [DONE]"]
        self._answer(200, "\n\n".join(lines) + "\n\n")

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def gateway() -> Iterator[tuple[str, type[Gateway]]]:
    handler = type("Handler", (Gateway,), {"requests": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", handler
        server.shutdown()
        thread.join()


def test_an_answer_is_printed_as_it_is_and_then_how_it_was_served(
    gateway: tuple[str, type[Gateway]], capsys: pytest.CaptureFixture[str]
) -> None:
    url, handler = gateway
    assert main(["chat", "--url", url, "What does os.path.join do?"]) == 0
    answer, served, why = capsys.readouterr().out.splitlines()
    assert answer == "Join [b]two[/b] paths."
    assert served == (
        "prefill-1 -> decode-1 | 50 prompt tokens, 16 cached | 32 by nixl (64 KiB in 1.5 ms) | first token after 42 ms"
    )
    assert why == "why: least seconds"
    [request] = handler.requests
    assert request["armature"] == {"include_info": True}
    assert request["stream"] is True


def test_a_conversation_carries_what_was_said(
    gateway: tuple[str, type[Gateway]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url, handler = gateway
    lines = iter(["first", "", "second", "/exit"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    assert main(["chat", "--url", url]) == 0
    roles = [[message["role"] for message in request["messages"]] for request in handler.requests]
    assert roles == [["user"], ["user", "assistant", "user"]]
    assert handler.requests[1]["messages"][1]["content"] == "Join [b]two[/b] paths."
    assert "Ctrl-D ends" in capsys.readouterr().out


def test_a_refusal_is_told_in_the_gateways_words(
    gateway: tuple[str, type[Gateway]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["chat", "--url", gateway[0], "--model", "x", "hello"]) == 1
    assert capsys.readouterr().err == "armature: the cell refused (404): no model 'x' here; there is 'demo'\n"


def test_an_answer_that_breaks_off_is_no_success(
    gateway: tuple[str, type[Gateway]], capsys: pytest.CaptureFixture[str]
) -> None:
    gateway[1].broken = True
    assert main(["chat", "--url", gateway[0], "hello"]) == 1
    assert "the answer broke off: the worker died" in capsys.readouterr().err


def test_in_a_conversation_a_failed_answer_is_told_and_forgotten(
    gateway: tuple[str, type[Gateway]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url, handler = gateway
    lines = iter(["first", "second"])

    def type_next(_: str) -> str:
        handler.broken = not handler.requests
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", type_next)
    assert main(["chat", "--url", url]) == 0
    assert "the answer broke off" in capsys.readouterr().err
    assert [message["content"] for message in handler.requests[1]["messages"]] == ["second"]


def test_without_a_cell_the_way_to_start_one_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "--url", "http://127.0.0.1:1", "hello"]) == 1
    assert "start one with `armature up`" in capsys.readouterr().err


def test_a_prompt_computed_where_it_is_decoded_names_one_worker() -> None:
    told = describe({"decode_worker": "d-1", "cached_tokens": 0, "ttft_s": 0.5, "migrations": 2}, {})
    assert told == "d-1 | 0 cached | first token after 500 ms | moved 2 times"
