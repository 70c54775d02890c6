"""The HTTP port under TLS: whom clients can trust, and certificates that are renewed while it serves."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from armature.cli.main import main
from armature.openai.serving.http.certificate import Certificate
from armature.openai.serving.http.server import HttpServer
from armature.openai.serving.responses.store import ResponseStore
from armature.openai.serving.rest import make_rest_app
from armature.runtime.errors import StartError
from armature.runtime.tls import TlsFiles
from tests.services.gateway.fakes import FakeRouter, listening
from tests.services.gateway.harness import MODEL, TEXT, make_worker, running_core
from tests.support.certificates import Authority
from tests.support.eventually import eventually


@asynccontextmanager
async def serving(certificate: Certificate) -> AsyncIterator[str]:
    worker = make_worker()
    router = FakeRouter([worker])
    async with listening(worker, router), running_core([worker], [router]) as (core, _):
        rest = make_rest_app(core, ResponseStore(None, "test"))
        http = HttpServer(rest, "127.0.0.1", 0, certificate=certificate)
        running = asyncio.create_task(http.run())
        await http.started()
        yield f"https://127.0.0.1:{http.port}"
        http.stop(now=True)
        await running


def subject(url: str, ca: Path) -> str:
    """Whose certificate a new connection is shown; raises ssl.SSLError if `ca` has not signed it."""
    host, _, port = url.removeprefix("https://").partition(":")
    context = ssl.create_default_context(cafile=ca)
    plain = socket.create_connection((host, int(port)), timeout=10)
    with plain, context.wrap_socket(plain, server_hostname=host) as secure:
        shown = secure.getpeercert()
    assert shown is not None
    return dict(field[0] for field in shown["subject"])["commonName"]  # type: ignore[misc]


async def test_clients_that_trust_the_authority_are_served_also_in_streams_and_others_turn_away(tmp_path: Path) -> None:
    files = Authority(tmp_path).issue("gateway")
    async with serving(Certificate(files.cert, files.key)) as url:
        async with httpx.AsyncClient(verify=ssl.create_default_context(cafile=files.ca), timeout=15) as client:
            body = {"model": MODEL, "prompt": "x", "stream": True}
            answer = await client.post(f"{url}/v1/completions", json=body)
        async with httpx.AsyncClient(timeout=15) as stranger:
            with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                await stranger.get(f"{url}/live")
    assert answer.status_code == 200
    assert answer.text.endswith("data: [DONE]\n\n")


async def test_renewed_files_count_for_new_connections_and_a_broken_pair_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority = Authority(tmp_path)
    old, new = authority.issue("old"), authority.issue("new")
    used = TlsFiles(tmp_path / "used.pem", tmp_path / "used-key.pem", old.ca)
    used.cert.write_bytes(old.cert.read_bytes())
    used.key.write_bytes(old.key.read_bytes())
    certificate = Certificate(used.cert, used.key)
    following = asyncio.create_task(certificate.follow(interval_s=0.01))
    async with serving(certificate) as url:
        assert await asyncio.to_thread(subject, url, old.ca) == "old"
        used.cert.write_bytes(new.cert.read_bytes())
        await eventually(lambda: "stays as it was" in caplog.text)
        assert await asyncio.to_thread(subject, url, old.ca) == "old"
        used.key.write_bytes(new.key.read_bytes())

        async def is_new() -> bool:
            return await asyncio.to_thread(subject, url, old.ca) == "new"

        await eventually(is_new)
    following.cancel()


def test_files_that_cannot_be_used_are_told_by_name(tmp_path: Path) -> None:
    one, other = Authority(tmp_path).issue("one"), Authority(tmp_path).issue("other")
    for chain, key in ((one.cert, other.key), (tmp_path / "none.pem", one.key)):
        with pytest.raises(StartError, match=f"http_tls_cert {chain}"):
            Certificate(chain, key)


async def test_the_chat_command_trusts_whom_it_is_told_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = Authority(tmp_path).issue("gateway")
    (tmp_path / "key").write_text("some key\n")
    async with serving(Certificate(files.cert, files.key)) as url:
        command = ["chat", "--url", url, "--key-file", str(tmp_path / "key"), "hello"]
        assert await asyncio.to_thread(main, [*command, "--ca", str(files.ca)]) == 0
        assert TEXT[:40] in capsys.readouterr().out.replace("\n", " ")
        assert await asyncio.to_thread(main, command) == 1
        assert "CERTIFICATE_VERIFY_FAILED" in capsys.readouterr().err
    assert main([*command, "--ca", str(tmp_path / "key")]) == 1
    assert "pass another --ca" in capsys.readouterr().err
