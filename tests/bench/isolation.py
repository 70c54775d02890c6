"""Whether a tenant can tell that another one has sent the same prompt: cached tokens and times to first token, live.

A cell with the demo model, computed by torch. Each prompt is sent for a first time by one tenant; then come, in random
order, the same one by the same tenant, and the same one and a new one by another tenant. To that one both must look
new: no cached tokens, and times to first token that are alike. Tested by ranks (Mann and Whitney 1947):
`probability` is how often times of one distribution differ at least as much by chance. One's own repeat, of which the
same is told, shows that a hit would have been seen. Neighbours on the machine delay all three alike.
"""

import argparse
import asyncio
import json
import math
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import httpx
import numpy as np
import yaml

from armature.engines.demo_model import DEMO_MODEL_PATH
from armature.openai.tenancy.keys import digest_of, new_key
from armature.runtime.processes import start_etcd
from tests.support.cell import running_cell

ONE, OTHER = "one", "other"
NEW, AGAIN, FOREIGN = "new", "same tenant again", "other tenant"
ENGINES = {
    "torch": ("--model", str(DEMO_MODEL_PATH), "--model-name", "demo", "--threads", "1"),
    "simulated": ("--performance", "qwen3-32b-tp2-h200", "--max-num-batched-tokens", "2048"),
}


class Answer(NamedTuple):
    cached_tokens: int
    ttft_s: float


def run(arguments: list[str] | None = None) -> dict[str, object]:
    parser = argparse.ArgumentParser(prog="isolation", description=__doc__)
    parser.add_argument("--engine", choices=ENGINES, default="torch", help="simulated ones take a real model's time")
    parser.add_argument("--prompts", type=int, default=60, help="that both tenants send")
    parser.add_argument("--prompt-tokens", type=int, default=2000, help="of each")
    return asyncio.run(_run(parser.parse_args(arguments or [])))


async def _run(options: argparse.Namespace) -> dict[str, object]:
    keys = {tenant: new_key()[0] for tenant in (ONE, OTHER)}
    book = {"keys": {key[:12]: {"tenant": tenant, "digest": digest_of(key)} for tenant, key in keys.items()}}
    is_simulated = options.engine == "simulated"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "keys.yaml").write_text(yaml.safe_dump(book))
        etcd = await start_etcd(folder / "etcd")
        flags = {"gateway": ("--keys", str(folder / "keys.yaml"))}
        async with running_cell(
            folder, etcd.address, prefill=0, decode=0, aggregated=0 if is_simulated else 1,
            fleets=(1,) if is_simulated else (), worker_flags=ENGINES[options.engine], flags=flags,
        ) as cell, httpx.AsyncClient(base_url=cell.url, timeout=120, trust_env=False) as client:  # fmt: skip
            seen = await _measure(client, keys, options)
        await etcd.stop()
    told: dict[str, object] = {"engine": options.engine, "prompt_tokens": options.prompt_tokens}
    told.update({kind: _figures(answers) for kind, answers in seen.items()})
    for kind in (FOREIGN, AGAIN):
        told[f"{kind}, compared with new"] = _compared(seen[kind], seen[NEW])
    return told


async def _measure(
    client: httpx.AsyncClient, keys: dict[str, str], options: argparse.Namespace
) -> dict[str, list[Answer]]:
    rng = random.Random(1)
    seen: dict[str, list[Answer]] = {NEW: [], AGAIN: [], FOREIGN: []}

    def prompt() -> list[int]:
        return rng.choices(range(300, 1000), k=options.prompt_tokens)

    for _ in range(3):  # what is computed first is slower
        await _ask(client, keys[ONE], prompt())
    for number in range(options.prompts):
        print(f"\r{number} of {options.prompts} prompts", end="", file=sys.stderr, flush=True)
        shared = prompt()
        await _ask(client, keys[ONE], shared)
        order = list(seen)
        rng.shuffle(order)
        for kind in order:
            asked = prompt() if kind == NEW else shared
            seen[kind].append(await _ask(client, keys[ONE if kind == AGAIN else OTHER], asked))
    print(f"\r{options.prompts} prompts          ", file=sys.stderr, flush=True)
    return seen


async def _ask(client: httpx.AsyncClient, key: str, prompt: list[int]) -> Answer:
    body = {"model": "demo", "prompt": prompt, "max_tokens": 1, "armature": {"include_info": True}}
    answer = await client.post("/v1/completions", json=body, headers={"authorization": f"Bearer {key}"})
    told = answer.raise_for_status().json()
    return Answer(told["usage"]["prompt_tokens_details"]["cached_tokens"], told["armature"]["ttft_s"])


def _figures(answers: Sequence[Answer]) -> dict[str, float]:
    times = np.array([answer.ttft_s for answer in answers])
    return {
        "samples": len(answers),
        "cached_tokens_mean": float(np.mean([answer.cached_tokens for answer in answers])),
        "cached_tokens_max": max(answer.cached_tokens for answer in answers),
        "ttft_s_mean": round(float(times.mean()), 4),
        "ttft_s_p50": round(float(np.median(times)), 4),
        "ttft_s_p90": round(float(np.quantile(times, 0.9)), 4),
    }


def _compared(answers: Sequence[Answer], with_: Sequence[Answer]) -> dict[str, float]:
    """Mann and Whitney's test with the normal approximation, and how much longer the median is."""
    one, other = (np.array([answer.ttft_s for answer in some]) for some in (answers, with_))
    larger = (one[:, None] > other[None, :]).mean() + (one[:, None] == other[None, :]).mean() / 2
    deviation = math.sqrt((len(one) + len(other) + 1) / (12 * len(one) * len(other)))
    z = float(larger - 0.5) / deviation
    return {
        "larger": round(float(larger), 3),
        "z": round(z, 2),
        "probability": round(math.erfc(abs(z) / math.sqrt(2)), 4),
        "ttft_p50_ratio": round(float(np.median(one) / np.median(other)), 3),
    }


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
