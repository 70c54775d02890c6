"""Chromium without a window, told what to do over the DevTools protocol by a pair of pipes: no driver between.

What a page says on its console, throws, and asks the network for is kept, so that a test can hold it against nothing.
"""

import asyncio
import base64
import contextlib
import itertools
import json
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
"""None: there is no browser here."""
TIMEOUT_S = 20.0
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
    "--no-default-browser-check", "--mute-audio", "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip


class Wire:
    """Commands to a browser and what comes of them: JSON between NULs."""

    def __init__(self, reader: asyncio.StreamReader, descriptor: int) -> None:
        self.listeners: dict[str, Page] = {}
        self._reader = reader
        self._descriptor = descriptor
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}

    async def ask(self, method: str, session: str = "", **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params, **({"sessionId": session} if session else {})}
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        os.write(self._descriptor, json.dumps(message).encode() + b"\0")
        async with asyncio.timeout(2 * TIMEOUT_S):  # a page that waits in vain says so itself before
            told = await answer
        assert "error" not in told, f"{method}: {told.get('error')}"
        return told["result"]

    async def run(self) -> None:
        while data := (await self._reader.readuntil(b"\0"))[:-1]:
            told = json.loads(data)
            if "id" in told:
                answer = self._waiting.pop(told["id"])
                if not answer.done():
                    answer.set_result(told)
            elif page := self.listeners.get(told.get("sessionId", "")):
                page.heard(told["method"], told["params"])


@dataclass
class Page:
    """One tab."""

    wire: Wire
    session: str
    problems: list[str] = field(default_factory=list)
    """What was thrown, or told on the console as a warning or worse."""
    requests: list[str] = field(default_factory=list)
    """Addresses that the network was asked for."""

    async def ask(self, method: str, **params: Any) -> dict[str, Any]:
        return await self.wire.ask(method, self.session, **params)

    def heard(self, method: str, params: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            self.problems.append(params["exceptionDetails"].get("exception", {}).get("description", str(params)))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("warning", "error", "assert"):
            self.problems.append(str([one.get("value", one.get("description")) for one in params["args"]]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("warning", "error"):
            self.problems.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])

    async def go(self, url: str) -> None:
        await self.ask("Page.navigate", url=url)

    async def value(self, script: str) -> Any:
        """What an expression comes to; a promise is awaited."""
        told = await self.ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in told, f"{script}: {told['exceptionDetails']}"
        return told["result"].get("value")

    async def until(self, script: str, timeout_s: float = TIMEOUT_S) -> Any:
        """The first value that is true; the page looks itself, whenever it has drawn."""
        looking = f"""new Promise((found, lost) => {{
            const end = performance.now() + {timeout_s * 1000};
            const look = () => {{
                let value; try {{ value = {script}; }} catch (error) {{ value = null; }}
                if (value) found(value);
                else if (performance.now() > end) lost(new Error("not in time"));
                else setTimeout(look, 30);
            }};
            look();
        }})"""
        try:
            return await self.value(looking)
        except AssertionError as error:
            text = await self.value("document.body.innerText")
            raise AssertionError(f"never: {script}\n{text}\n{self.problems}") from error

    async def text(self, selector: str) -> str:
        return str(await self.value(f"document.querySelector({json.dumps(selector)}).innerText"))

    async def click(self, selector: str) -> None:
        await self.value(f"document.querySelector({json.dumps(selector)}).click()")

    async def press(self, key: str, text: str = "") -> None:
        """A key as the user's keyboard sends it."""
        extra = {"text": text} if text else {}
        codes = {"Tab": 9, "Enter": 13, "Escape": 27}
        code = {"windowsVirtualKeyCode": codes[key]} if key in codes else {}
        await self.ask("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, **extra, **code)
        await self.ask("Input.dispatchKeyEvent", type="keyUp", key=key, code=key, **code)

    async def type(self, text: str) -> None:
        await self.ask("Input.insertText", text=text)

    async def look(self, width: int, height: int, *, scheme: str = "light") -> None:
        """A window of this size, of people who like it light or dark."""
        await self.ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        features = [
            {"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        await self.ask("Emulation.setEmulatedMedia", features=features)

    async def screenshot(self, path: Path, *, whole: bool = False) -> None:
        told = await self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(told["data"]))


@asynccontextmanager
async def running_browser() -> AsyncIterator[Page]:
    """A browser with an empty profile and one tab."""
    assert BROWSER is not None, "there is no Chromium here"
    with tempfile.TemporaryDirectory(prefix="armature-browser-", ignore_cleanup_errors=True) as profile:
        down_read, down_write = os.pipe()
        up_read, up_write = os.pipe()
        # The browser reads from descriptor 3 and writes to 4, whatever ours are.
        script = f'exec 3<&{down_read} 4>&{up_write}; exec "$@"'
        process = await asyncio.create_subprocess_exec(
            "/bin/bash", "-c", script, "bash", BROWSER, *_FLAGS, f"--user-data-dir={profile}", "about:blank",
            pass_fds=(down_read, up_write), stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        os.close(down_read)
        os.close(up_write)
        reader = asyncio.StreamReader(limit=64 << 20)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(up_read, "rb")
        )
        wire = Wire(reader, down_write)
        reading = asyncio.create_task(wire.run())
        try:
            target = await wire.ask("Target.createTarget", url="about:blank")
            attached = await wire.ask("Target.attachToTarget", targetId=target["targetId"], flatten=True)
            page = wire.listeners[attached["sessionId"]] = Page(wire, attached["sessionId"])
            for domain in ("Page", "Runtime", "Log", "Network"):
                await page.ask(f"{domain}.enable")
            yield page
        finally:
            reading.cancel()
            transport.close()
            os.close(down_write)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
