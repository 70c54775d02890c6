"""Models on GPUs that we don't have: step times from the measured tables of `aiconfigurator-core` (extra `silicon`).

The tables are asked on a grid once; what comes back is a `Preset` that no longer needs them. Models are those that the
package knows, or a directory with a `config.json`; nothing is downloaded.
"""

import importlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from armature.performance.presets import Preset
from armature.performance.table import Curve, TableModel

_NEW_TOKENS = (1, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_CACHED_TOKENS = (0, 2048, 8192, 32768, 98304)
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_CONTEXT_TOKENS = (128, 512, 2048, 8192, 16384, 32768)

# The engines' own defaults: TensorRT-LLM takes 0.9 of what weights leave free, the others 0.9 of all less the weights.
_MEMORY_FRACTION = 0.9
_LARGEST_STEP_TOKENS, _LARGEST_BATCH = 8192, 256
# Decode steps with more KV than this never occur, so they need not be foretold.
_MOST_KV_SHARE = 1.2


class SiliconError(ValueError):
    """The tables are not installed, or don't have what was asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Silicon:
    """A model on its GPUs, in the tables' words."""

    model: str
    """A Hugging Face name, or a directory with a `config.json`."""
    system: str
    backend: str
    tp: int = 1
    pp: int = 1
    dp: int = 1
    ep: int = 1

    def __str__(self) -> str:
        split = f"tp={self.tp} pp={self.pp} dp={self.dp} ep={self.ep}"
        return f"{self.model} on {self.system} with {self.backend}, {split}"


def silicon_model(
    *, model: str, system: str, backend: str, tp: int = 1, pp: int = 1, dp: int = 1, ep: int = 1
) -> Preset:  # fmt: skip
    """Step times and capacity of one lane of a replica: of each stage and group of attention there is one.

    A step of a lane is counted through all stages, while other lanes keep these as busy; groups step together.

    Raises:
        SiliconError: the extra is missing, or the tables lack the model, the system, the backend or the split.
    """
    wanted = Silicon(model=model, system=system, backend=backend, tp=tp, pp=pp, dp=dp, ep=ep)
    _check(wanted)
    split = _split_of(wanted)
    try:
        memory = _memory_of(wanted, split)
        # Of all stages together a GPU holds one; so many lanes share what that leaves.
        kv_tokens, token_bytes = int(memory["total_kv_size_tokens"]), int(memory["kv_size_per_token_bytes"] * tp)
        return Preset(str(wanted), _measured(wanted, split, kv_tokens), kv_tokens, token_bytes, gpus=tp)
    # The package raises what it happens to raise: assertions, key errors, its own.
    except Exception as error:
        raise SiliconError(f"no tables for {wanted}: {error}") from error


def gpus_per_domain(system: str) -> int:
    """GPUs that reach each other without a network: those of a node, or of a rack where a switch joins nodes.

    Raises:
        SiliconError: the extra is missing, or there is no such system.
    """
    _check_system(system)
    package = Path(str(_sdk("engine").__file__)).parents[1]
    node = yaml.safe_load((package / "systems" / f"{system}.yaml").read_text())["node"]
    return node.get("num_gpus_per_rack", node["num_gpus_per_node"])


def has_experts(model: str) -> bool:
    """Whether a model's layers are mixtures of experts, which can be dealt out to GPUs.

    Raises:
        SiliconError: the extra is missing, or there is no such model.
    """
    _check_model(model)
    return bool(_sdk("models.helpers").check_is_moe(model))


def _sdk(module: str) -> Any:
    # It warns of what it takes for granted in every engine that it makes.
    logging.getLogger("aiconfigurator_core").setLevel(logging.ERROR)
    try:
        return importlib.import_module(f"aiconfigurator_core.sdk.{module}")
    except ImportError as error:
        raise SiliconError(f"silicon tables need `pip install armature[silicon]`: {error}") from error


def _check(wanted: Silicon) -> None:
    for name in ("tp", "pp", "dp", "ep"):
        if getattr(wanted, name) < 1:
            raise SiliconError(f"{name} is {getattr(wanted, name)}; it must be at least 1")
    measured = _check_system(wanted.system)
    if wanted.backend not in measured[wanted.system]:
        backends = _names(measured[wanted.system])
        raise SiliconError(f"{wanted.system} has no backend {wanted.backend!r}; it has {backends}")
    _check_model(wanted.model)


def _check_system(system: str) -> dict[str, dict[str, list[str]]]:
    measured: dict[str, dict[str, list[str]]] = _sdk("perf_database").get_supported_databases()
    if system not in measured:
        raise SiliconError(f"there is no system {system!r}; there are {_names(measured)}")
    return measured


def _check_model(model: str) -> None:
    models: set[str] = _sdk("common").get_default_models()
    if model not in models and not (Path(model) / "config.json").is_file():
        raise SiliconError(
            f"there is no model {model!r}, nor a directory with a config.json; there are {_names(models)}"
        )


def _names(names: Any) -> str:
    return ", ".join(sorted(names))


def _split_of(wanted: Silicon) -> dict[str, int]:
    """How experts are split: what `ep` leaves of the GPUs splits each of them."""
    split = {"tp_size": wanted.tp, "pp_size": wanted.pp}
    if not has_experts(wanted.model):
        for name in ("dp", "ep"):
            if getattr(wanted, name) > 1:
                given = f"{name} is {getattr(wanted, name)}, but {wanted.model} has no experts"
                raise SiliconError(f"{given}; leave it at 1")
        return split
    shared = wanted.tp * wanted.dp
    if shared % wanted.ep:
        raise SiliconError(f"ep is {wanted.ep}; it must divide tp * dp, which is {shared}")
    experts = {"moe_ep_size": wanted.ep, "moe_tp_size": shared // wanted.ep}
    return split | experts | {"attention_dp_size": wanted.dp}


def _measured(wanted: Silicon, split: dict[str, int], kv_tokens: int) -> TableModel:
    """As the checkpoint asks for, or with attention over prompts in 16 bits where nobody has measured it in 8."""
    engine_of = _sdk("engine").EngineHandle.compile
    asked = (wanted.model, wanted.system, wanted.backend)
    missing = _sdk("errors").PerfDataNotAvailableError
    try:
        return _table_of(engine_of(*asked, backend_version="current", **split), kv_tokens)
    except missing:
        wider = engine_of(*asked, backend_version="current", fmha_quant_mode="bfloat16", **split)
        return _table_of(wider, kv_tokens)


def _memory_of(wanted: Silicon, split: dict[str, int]) -> dict[str, Any]:
    return _sdk("memory").estimate_kv_cache(
        wanted.model,
        wanted.system,
        wanted.backend,
        "current",
        max_num_tokens=_LARGEST_STEP_TOKENS,
        max_batch_size=_LARGEST_BATCH,
        memory_fraction_kind="of_free" if wanted.backend == "trtllm" else "of_total",
        memory_fraction_value=_MEMORY_FRACTION,
        **split,
    )


def _table_of(engine: Any, kv_tokens: float) -> TableModel:
    def prefill_s(new_tokens: int, cached_tokens: int) -> float:
        return engine.predict_prefill_latency(1, cached_tokens + new_tokens, cached_tokens) / 1e3

    def decode_s(batch: int, context_tokens: int) -> float:
        return engine.predict_decode_latency(batch, context_tokens) / 1e3

    prefill_lines = [_line(prefill_s, new, _CACHED_TOKENS) for new in _NEW_TOKENS]
    # A line over cached tokens is one over pairs: each new token attends to all of them, and to half of the new ones.
    pair_s = [slope / new for new, (_, slope) in zip(_NEW_TOKENS, prefill_lines, strict=True)]
    rest_s = [
        max(start - pair * new * new / 2, 0.0)
        for new, (start, _), pair in zip(_NEW_TOKENS, prefill_lines, pair_s, strict=True)
    ]
    decode_lines = [_line(decode_s, batch, _contexts(batch, kv_tokens)) for batch in _BATCHES]
    return TableModel(
        decode_s=Curve(_BATCHES, [start for start, _ in decode_lines]),
        context_token_s=Curve(
            _BATCHES, [slope / batch for batch, (_, slope) in zip(_BATCHES, decode_lines, strict=True)]
        ),
        prefill_s=Curve(_NEW_TOKENS, rest_s),
        pair_s=Curve(_NEW_TOKENS, pair_s),
    )


def _contexts(batch: int, kv_tokens: float) -> list[int]:
    fitting = [tokens for tokens in _CONTEXT_TOKENS if batch * tokens <= _MOST_KV_SHARE * kv_tokens]
    return fitting if len(fitting) > 1 else list(_CONTEXT_TOKENS[:2])


def _line(took_s: Callable[[int, int], float], count: int, tokens: Sequence[int]) -> tuple[float, float]:
    """Start and slope over `tokens`, by relative least squares."""
    measured = np.array([took_s(count, each) for each in tokens])
    rows = np.stack([np.ones(len(tokens)), np.array(tokens, dtype=float)], axis=1) / measured[:, None]
    start, slope = np.linalg.lstsq(rows, np.ones(len(tokens)), rcond=None)[0].tolist()
    if slope < 0:
        return float(measured.mean()), 0.0
    return start, slope
