"""What a request costs at the front door: our gateway, beside Dynamo's frontend where that is installed.

Usage: python -m tests.bench gateway [--dynamo-python PYTHON] [--rounds N] [--seed N] [--prompts N,...] [--pace MS,...]

Chats of one message, streamed answers of 32 tokens, workers that compute nothing. Prompts are pieces of Python's
standard library at random places, tokenized by a vocabulary of 32,000 that was trained on it; none comes twice. Both
sides get the same prompts, turn by turn in one run, and their CPU time is what counts: `cpu_ms` is that of each
process for a request. Dynamo's frontend contains its router, so its peer is `gateway` and `router` together; `ratios`
are ours to theirs, below 1 if ours is less. Latencies are those of a machine that is also busy with workers and client.

Paced, the workers of both sides make a token every so many milliseconds, and each comes as an event of its own: what
serving is like. At pace 0 they make them as fast as they can; tokens then come together, fewer events on our side.
Dynamo's mocker steps by a formula of its own that knows the context, so its pace is only about that: 9.2 to 10 ms for
10. `token_gap_ms_p50` says what the workers made of it, and is in every end-to-end time as often as there are tokens
after the first; what a front door adds to an answer that is alone is mostly the time to its first token.
Figures are those of the round in which a side needed least CPU for the request, since others may use the machine.
"""

import argparse
import asyncio
import gc
import json
import random
import statistics
import sys
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from tests.bench.fronts import MODEL, Front, armature_front, dynamo_front
from tests.bench.load import Load, chat_bodies, stream_all
from tests.support.models import make_tokenizer

OUTPUT_TOKENS = 32
CONCURRENCIES = (1, 32, 128)
REQUESTS, PACED_REQUESTS = {1: 100, 32: 400, 128: 512}, {1: 12, 32: 96, 128: 256}
"""By concurrency, in a round, of the shortest prompts; of long ones without a pace a third."""
IDLE_S = 5.0
VOCABULARY, LARGEST_FILE_BYTES, FILES = 32_000, 400_000, 900


@dataclass
class Cell:
    """What one side has done with one kind of request, in one round."""

    load: Load
    cpu_s: dict[str, float]

    @property
    def cpu_per_request_s(self) -> float:
        return sum(self.cpu_s.values()) / self.load.requests

    def figures(self) -> dict[str, Any]:
        load = self.load
        gaps_s = [(e2e_s - ttft_s) / (OUTPUT_TOKENS - 1) for ttft_s, e2e_s in zip(load.ttft_s, load.e2e_s, strict=True)]
        cpu_ms = {part: 1e3 * spent_s / load.requests for part, spent_s in self.cpu_s.items()}
        return {
            "cpu_ms": {**cpu_ms, "all": sum(cpu_ms.values())},
            "requests_per_s": load.requests / load.wall_s,
            "tokens_per_s": load.tokens / load.wall_s,
            "events": load.events / load.requests,
            **{f"ttft_ms_{name}": value for name, value in _quantiles_ms(load.ttft_s).items()},
            **{f"e2e_ms_{name}": value for name, value in _quantiles_ms(load.e2e_s).items()},
            "token_gap_ms_p50": _quantiles_ms(gaps_s)["p50"],
        }


class Corpus:
    """The standard library's text, a model directory whose tokenizer was trained on it, and prompts out of it."""

    def __init__(self, directory: Path) -> None:
        library = Path(sysconfig.get_paths()["stdlib"])
        files = [path for path in sorted(library.rglob("*.py")) if "site-packages" not in path.parts]
        texts = [path.read_bytes() for path in files if path.stat().st_size < LARGEST_FILE_BYTES][:FILES]
        decoded = [text.decode(errors="ignore") for text in texts]
        self.directory = directory
        make_tokenizer(directory, VOCABULARY, decoded)
        (directory / "config.json").write_text(json.dumps(_CONFIG))
        self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self._text = "".join(decoded)

    def prompts(self, count: int, tokens: int, rng: random.Random) -> list[str]:
        """Texts of so many tokens each, before the chat template."""
        width = 6000 + 8 * tokens  # characters: more than enough, a token has about four
        starts = [rng.randrange(len(self._text) - width) for _ in range(count)]
        texts = [self._text[start : start + width] for start in starts]
        encodings = [self._tokenizer.encode(text, add_special_tokens=False) for text in texts]
        return [text[: encoding.offsets[tokens][0]] for text, encoding in zip(texts, encodings, strict=True)]


_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256, "intermediate_size": 512,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "hidden_act": "silu",
    "vocab_size": VOCABULARY, "max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "rope_theta": 5e5,
    "bos_token_id": 0, "eos_token_id": 2, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip


Cells = dict[str, list[Cell]]
"""Of each side, by rounds."""


async def measure(fronts: Mapping[str, Front], bodies: Sequence[bytes], concurrency: int, cells: Cells) -> None:
    """Send all of `bodies` to each front in turn."""
    for name, front in fronts.items():
        before = front.cpu_s()
        load = await stream_all(front.address, bodies, concurrency)
        spent_s = {part: now_s - before[part] for part, now_s in front.cpu_s().items()}
        assert load.tokens == OUTPUT_TOKENS * load.requests, f"{name} sent {load.tokens} tokens"
        cells.setdefault(name, []).append(Cell(load, spent_s))


async def _run(options: argparse.Namespace) -> dict[str, object]:
    rng = random.Random(options.seed)
    results: dict[str, object] = {"output_tokens": OUTPUT_TOKENS, "rounds": options.rounds, "seed": options.seed}
    with tempfile.TemporaryDirectory() as folder:
        corpus = Corpus(Path(folder) / "model")
        if not options.dynamo_python:
            results["dynamo"] = "skipped: --dynamo-python names no Python that has it"
        for pace_ms in options.pace:
            made = Path(folder) / f"pace-{pace_ms:g}"
            mode = f"a token every {pace_ms:g} ms" if pace_ms else "as fast as they can"
            results[mode] = await _compare(made, corpus, pace_ms / 1e3, options, rng)
    return results


async def _compare(
    folder: Path, corpus: Corpus, pace_s: float, options: argparse.Namespace, rng: random.Random
) -> dict[str, object]:
    """Both sides with workers of one pace."""
    async with AsyncExitStack() as stack:
        ours = armature_front(folder / "ours", corpus.directory, pace_s)
        fronts = {"armature": await stack.enter_async_context(ours)}
        if options.dynamo_python:
            theirs = dynamo_front(folder / "theirs", corpus.directory, pace_s, options.dynamo_python)
            fronts["dynamo"] = await stack.enter_async_context(theirs)
        # Connections, caches, and the interpreter's own specialisation.
        await measure(fronts, _bodies(corpus, 300, min(options.prompts), rng), 32, {})
        gc.freeze()
        table: dict[str, Cells] = {}
        for number in range(options.rounds):
            order = dict(reversed(fronts.items())) if number % 2 else fronts
            for tokens in options.prompts:
                for concurrency in CONCURRENCIES:
                    count = PACED_REQUESTS[concurrency] if pace_s else REQUESTS[concurrency]
                    count //= 1 if pace_s or tokens == min(options.prompts) else 3
                    cells = table.setdefault(f"{tokens} tokens, {concurrency} at once", {})
                    await measure(order, _bodies(corpus, count, tokens, rng), concurrency, cells)
        idle = await _idle_ms_per_s(fronts)
        notes = [front.notes for front in fronts.values() if front.notes]
    rows: dict[str, object] = {name: _row(cells) for name, cells in table.items()}
    return rows | {"idle_cpu_ms_per_s": idle} | ({"notes": notes} if notes else {})


async def _idle_ms_per_s(fronts: Mapping[str, Front]) -> dict[str, dict[str, float]]:
    """What each process takes when nobody asks for anything."""
    before = {name: front.cpu_s() for name, front in fronts.items()}
    await asyncio.sleep(IDLE_S)
    return {
        name: {part: 1e3 * (now_s - before[name][part]) / IDLE_S for part, now_s in front.cpu_s().items()}
        for name, front in fronts.items()
    }


def _bodies(corpus: Corpus, count: int, tokens: int, rng: random.Random) -> list[bytes]:
    return chat_bodies(MODEL, corpus.prompts(count, tokens, rng), OUTPUT_TOKENS)


def _row(cells: Cells) -> dict[str, Any]:
    best = {name: min(rounds, key=lambda cell: cell.cpu_per_request_s) for name, rounds in sorted(cells.items())}
    row: dict[str, Any] = {name: cell.figures() for name, cell in best.items()}
    if "dynamo" in row:
        ours, theirs = row["armature"], row["dynamo"]
        frontend = theirs["cpu_ms"]["frontend"]
        row["ratios"] = {
            "cpu_gateway": ours["cpu_ms"]["gateway"] / frontend,
            "cpu_gateway_and_router": ours["cpu_ms"]["all"] / frontend,
            **{
                name: ours[name] / theirs[name]
                for name in ("requests_per_s", "ttft_ms_p50", "e2e_ms_p50", "e2e_ms_p99")
            },
        }
    return row


def _quantiles_ms(seconds: Sequence[float]) -> dict[str, float]:
    cuts = statistics.quantiles(seconds, n=100)
    return {"p50": 1e3 * cuts[49], "p99": 1e3 * cuts[98]}


def run(arguments: Sequence[str] = ()) -> dict[str, object]:
    parser = argparse.ArgumentParser(prog="python -m tests.bench gateway")
    parser.add_argument("--dynamo-python", type=Path, help="a Python that has ai-dynamo and fastokens")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32), help="of the prompts")
    parser.add_argument(
        "--prompts",
        type=lambda text: [int(part) for part in text.split(",")],
        default=[100, 8000],
        help="tokens, N,N...",
    )
    parser.add_argument(
        "--pace",
        type=lambda text: [float(part) for part in text.split(",")],
        default=[0.0, 10.0],
        help="milliseconds from token to token, MS,MS...; 0: workers are as fast as they can be",
    )
    return asyncio.run(_run(parser.parse_args(arguments)))


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1:]), indent=2))
