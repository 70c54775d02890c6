"""The console in a real browser, over a real cell whose workers are simulated."""

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.browser import BROWSER, Page, running_browser
from tests.support.cell import Cell, running_cell

ADMIN_KEY = "an admin key that nobody guesses"
VIEWS = ("overview", "workers", "decisions", "chat")
QUESTION = "What does os.path.join do with several path components, and when does it drop those that came before?"
FLAGS = ("--engine", "simulated", "--simulated-answer-tokens", "12", "--transport", "grpc", "--block-size", "8")

pytestmark = pytest.mark.skipif(
    BROWSER is None and "NEEDS_BROWSER" not in os.environ,
    reason="there is no Chromium here: install the package `chromium`",
)


@pytest.fixture(scope="module")
async def cell(etcd_address: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cell]:
    folder = tmp_path_factory.mktemp("console")
    flags = {"router": ("--disaggregation", "always"), "gateway": ("--admin-key", ADMIN_KEY)}
    async with running_cell(folder, etcd_address, decode=1, worker_flags=FLAGS, flags=flags) as cell:
        yield cell


@pytest.fixture(scope="module")
async def browser(cell: Cell) -> AsyncIterator[Page]:
    """With the console open and the key entered, as the first test does."""
    async with running_browser() as page:
        await page.look(1280, 900)
        yield page


@pytest.fixture
async def page(browser: Page, cell: Cell) -> AsyncIterator[Page]:
    await browser.look(1280, 900)
    browser.requests.clear()
    browser.problems.clear()
    await browser.go(f"{cell.url}/console")
    if await browser.value("sessionStorage.length"):
        await browser.until("document.getElementById('status').textContent === 'Live'")
    yield browser
    assert {urlsplit(url).netloc for url in browser.requests} == {urlsplit(cell.url).netloc}
    assert not any(ADMIN_KEY[:6] in url for url in browser.requests)


async def live(page: Page) -> None:
    await page.until("document.getElementById('status').textContent === 'Live'")


async def view(page: Page, name: str) -> None:
    await page.value(f"location.hash = '#{name}'")
    await page.until(f"document.querySelector('nav a[aria-current]').hash === '#{name.split('/')[0]}'")


async def test_the_key_is_asked_for_kept_by_the_tab_and_nowhere_else(page: Page) -> None:
    await page.until("document.getElementById('access').open")
    await page.type("a key that somebody made up")
    await page.press("Enter", "\r")
    await page.until("document.getElementById('access-why').textContent.includes('does not open')")
    await page.type(ADMIN_KEY)
    await page.press("Enter", "\r")
    await live(page)
    assert await page.value("Object.values(sessionStorage)") == [ADMIN_KEY]
    assert await page.value("localStorage.length + document.cookie.length") == 0
    assert ADMIN_KEY not in await page.value("document.documentElement.outerHTML")
    await page.ask("Page.reload")
    await page.until("document.querySelector('.tile')")
    assert not await page.value("document.getElementById('access').open")


async def test_the_overview_shows_who_is_there(page: Page, cell: Cell) -> None:
    await page.until("document.querySelectorAll('.tile').length === 2")
    text = await page.text("main")
    assert "No planner is registered" in text
    for name in ("gateway", "router", "kv-index"):
        assert cell.services[name].member_id in text
    assert "2 exact" in text
    assert await page.value("document.querySelectorAll('.plot').length") == 4
    assert page.problems == []


async def test_an_answer_is_streamed_and_tells_why_it_was_made_where(page: Page, cell: Cell) -> None:
    await view(page, "chat")
    await page.until("document.getElementById('chat-model').value === 'demo'")
    await page.until("document.activeElement.id === 'chat-text'")
    await page.type(QUESTION)
    await page.press("Enter", "\r")
    await page.until(
        "document.querySelector('.served .why') && document.querySelector('.ask button').innerText === 'Send'"
    )
    served = await page.text(".served")
    assert cell.services["decode-worker-0"].member_id in served
    assert cell.services["prefill-worker-0"].member_id in served
    assert "over grpc" in served
    assert "13 tokens" in served  # with the one that ends it
    await page.click(".served .why a")
    await page.until("document.querySelectorAll('.ways li').length >= 1")
    explained = await page.text("main")
    assert "chosen" in explained
    assert "What other policies would have done" in explained
    assert await page.value("document.querySelectorAll('.ways [data-chosen] .stack i').length") >= 1
    await view(page, "decisions")
    await page.until("document.querySelectorAll('table.decisions tbody tr').length >= 1")
    assert QUESTION not in await page.text("main")
    assert page.problems == []


async def test_an_unknown_request_is_said_to_be_unknown(page: Page) -> None:
    await view(page, "decisions/<img src=x onerror=alert(1)>")
    await page.until("document.querySelector('.notice')?.innerText.includes('no router remembers')")
    assert await page.value("document.querySelectorAll('#live img').length") == 0
    (problem,) = page.problems  # the answer's 404
    assert "404" in problem


async def test_workers_are_found_sorted_and_missed(page: Page, cell: Cell) -> None:
    await view(page, "workers")
    await page.until("document.querySelectorAll('table.workers tbody tr').length === 2")
    await page.value("document.getElementById('filter').focus()")
    await page.type("prefill")
    await page.until("document.querySelectorAll('table.workers tbody tr').length === 1")
    assert await page.value("document.activeElement.id") == "filter"
    await page.press("Tab")
    await page.press("Tab")
    await page.press("Enter", "\r")
    await page.until("document.querySelector('th[aria-sort=descending]')")
    worker = cell.services["prefill-worker-0"]
    worker.signal(signal.SIGSTOP)
    try:
        await page.until("document.querySelector('tr[data-silent]')?.innerText.includes('no answer')")
        await view(page, "overview")
        await page.until("document.querySelector('.notices')?.innerText.includes('does not answer')")
    finally:
        worker.signal(signal.SIGCONT)
    await page.until("!document.querySelector('.tile[data-tone=bad]')")
    assert page.problems == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_every_view_fits_a_phone_by_day_and_by_night(page: Page, scheme: str, tmp_path: Path) -> None:
    await page.look(360, 740, scheme=scheme)
    for name in VIEWS:
        await view(page, name)
        await page.until("document.querySelector('#live > *:nth-child(2), #talk:not([hidden])')")
        assert await page.value("document.documentElement.scrollWidth") <= 360, name
    background = await page.value("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (sum(background) > 600) == (scheme == "light")
    await page.screenshot(tmp_path / "chat.png")
    assert (tmp_path / "chat.png").stat().st_size > 5000
    assert page.problems == []
