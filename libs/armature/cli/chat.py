"""`armature chat`: talks to a cell, and tells after every answer how it was served."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
from rich.console import Console

from armature.cli.access import ANYBODY, Access
from armature.runtime.errors import StartError

# From one piece of an answer to the next; a long prompt on a slow machine takes its time.
TIMEOUT_S = 120.0

Message = dict[str, str]


class Chat:
    """One conversation over the OpenAI API."""

    def __init__(
        self,
        url: str,
        model: str,
        console: Console,
        *,
        max_tokens: int,
        temperature: float,
        access: Access = ANYBODY,
    ) -> None:
        self._client = httpx.Client(base_url=url, timeout=TIMEOUT_S, headers=access.headers, verify=access.verify)
        self._url = url
        self._model = model
        self._console = console
        self._sampling = {"max_tokens": max_tokens, "temperature": temperature}
        self._messages: list[Message] = []

    def ask(self, prompt: str) -> None:
        """Print the answer as it comes, then how it was served. A question without an answer is not remembered.

        Raises:
            StartError: nobody serves there, or the request was refused.
        """
        messages = [*self._messages, {"role": "user", "content": prompt}]
        answer, info, usage = "", {}, {}
        for chunk in self._chunks(messages):
            info, usage = chunk.get("armature") or info, chunk.get("usage") or usage
            for choice in chunk.get("choices", []):
                text = choice.get("delta", {}).get("content") or ""
                answer += text
                self._console.print(text, end="", markup=False, highlight=False, soft_wrap=True)
        self._console.print()
        if info:
            self._console.print(describe(info, usage), style="dim", markup=False, highlight=False, soft_wrap=True)
        self._messages = [*messages, {"role": "assistant", "content": answer}]

    def model(self) -> str:
        """The model that is asked: the one named, else the first that the cell lists.

        Raises:
            StartError: nobody serves there, or no model is listed.
        """
        if not self._model:
            try:
                answer = self._client.get("/v1/models")
                if answer.is_error:
                    raise StartError(_refusal(answer))
                listed = answer.json().get("data", [])
            except (httpx.HTTPError, ValueError) as error:
                raise self._unreachable(error) from error
            if not listed:
                raise StartError(f"the cell on {self._url} has no worker yet: see `armature status`")
            self._model = listed[0]["id"]
        return self._model

    def _chunks(self, messages: list[Message]) -> Iterator[dict[str, Any]]:
        body = {
            "model": self.model(),
            "messages": messages,
            "stream": True,
            "stream_options": {"include_usage": True},
            "armature": {"include_info": True},
            **self._sampling,
        }
        try:
            with self._client.stream("POST", "/v1/chat/completions", json=body) as response:
                if response.is_error:
                    raise StartError(_refusal(response))
                for line in response.iter_lines():
                    data = line.removeprefix("data: ")
                    if data != line and data != "[DONE]":
                        yield _checked(json.loads(data))
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> StartError:
        return StartError(f"no cell answers on {self._url} ({error}): start one with `armature up`, or see --url")


def describe(info: dict[str, Any], usage: dict[str, Any]) -> str:
    """Who served an answer, what was cached, what moved, how long the first token took; in a second line, why so."""
    prefill, decode = info.get("prefill_worker") or "", info.get("decode_worker") or "?"
    parts = [f"{prefill} -> {decode}" if prefill else decode]
    tokens = f"{usage['prompt_tokens']} prompt tokens, " if usage.get("prompt_tokens") else ""
    parts.append(f"{tokens}{info.get('cached_tokens') or 0} cached")
    if moved := info.get("transferred_tokens"):
        size_kib = int(info.get("transferred_bytes") or 0) / 1024
        time_ms = float(info.get("transfer_s") or 0.0) * 1000
        parts.append(f"{moved} by {info.get('transport') or '?'} ({size_kib:.0f} KiB in {time_ms:.1f} ms)")
    parts.append(f"first token after {float(info.get('ttft_s') or 0.0) * 1000:.0f} ms")
    if migrations := info.get("migrations"):
        parts.append(f"moved {migrations} times")
    served = " | ".join(parts)
    return f"{served}\nwhy: {info['reason']}" if info.get("reason") else served


def _checked(chunk: dict[str, Any]) -> dict[str, Any]:
    """Errors in the middle of a stream come as a chunk of their own."""
    if error := chunk.get("error"):
        raise StartError(f"the answer broke off: {error.get('message', error)}")
    return chunk


def _refusal(response: httpx.Response) -> str:
    try:
        message = json.loads(response.read())["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = response.text[:200]
    return f"the cell refused ({response.status_code}): {message}"
