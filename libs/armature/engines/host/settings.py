"""What a worker can be told, whatever its role."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from armature.engines.demo_model import DEMO_MODEL_NAME, DEMO_MODEL_PATH
from armature.performance.presets import PRESETS
from armature.runtime.settings import CommonSettings, option


@dataclass(frozen=True, kw_only=True)
class WorkerSettings(CommonSettings):
    """A worker: one engine with its KV blocks."""

    model: Path = option(
        DEMO_MODEL_PATH, help="directory with config, tokenizer and weights; all workers of a model alike"
    )
    model_name: str = option(DEMO_MODEL_NAME, help="name that clients ask for")
    tool_call_parser: Literal["auto", "none", "hermes", "qwen3_coder", "llama3", "mistral", "deepseek", "harmony"] = (
        option("auto", help="how the model writes tool calls; auto: as its chat template tells, which rarely errs")
    )
    reasoning_parser: Literal["auto", "none", "think", "mistral", "granite", "harmony"] = option(
        "auto", help="how the model writes its reasoning; none leaves it in the answers"
    )
    engine: Literal["torch", "simulated", "vllm"] = option(
        "torch", help="vllm where it is installed; simulated makes up tokens, to try a cell without compute"
    )
    vllm_args: str = option("", help='more of vLLM\'s engine arguments, as JSON such as {"tensor_parallel_size": 2}')
    device: str = option("auto", help="where torch computes: auto, cpu, cuda, cuda:1")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", help="of weights and KV; the same in a cell"
    )
    threads: int = option(0, help="CPU threads of torch; 0 takes all cores, lower it where workers share a machine")
    block_size: int = option(16, help="tokens in a KV block, the same in the whole cell")
    kv_cache_bytes: int = option(
        256 * 1024 * 1024, help="size of the KV pool; as much as fits beside the weights, 0 with vllm"
    )
    num_blocks: int = option(0, help="size of the KV pool in blocks instead; 0: kv_cache_bytes decides")
    context_length: int = option(0, help="most tokens of prompt and answer; 0: what the model allows")
    max_num_seqs: int = option(16, help="requests in one step; higher for throughput, lower for a shorter step")
    max_num_batched_tokens: int = option(
        512, help="tokens in one step; lower if prompts delay running answers too much"
    )
    max_waiting: int = option(1024, help="requests that may wait for the engine; further ones are sent elsewhere")
    simulated_block_bytes: int = option(4096, help="bytes of a simulated KV block; raise it to load the transport")
    simulated_answer_tokens: int = option(0, help="simulated answers end after so many tokens; 0: at their limit")
    performance: str = option(
        "", help="whose time simulated steps take: a preset like qwen3-32b-tp2-h200; empty: they take none"
    )
    speed_up: float = option(
        1.0, help="simulated steps are so many times as fast as that; raise it to see more traffic in less time"
    )
    simulated_kv_events: bool = option(
        True, help="whether simulated engines tell what they cache; no to try a cell of engines that can't"
    )
    transport: Literal["nixl", "grpc"] = option("nixl", help="how KV moves; grpc where NIXL is not to be had")
    offload: bool = option(
        False, help="keep KV in this node's kv-offload when the pool is full; yes where there is one"
    )
    offload_when: Literal["released", "evicting"] = option(
        "released", help="evicting: copy KV only shortly before it is evicted, if little of it ever comes back"
    )
    offload_bytes_per_s: float = option(0.0, help="most KV copied there in a second; 0: no limit")
    peer_pull: bool = option(
        False,
        help="read cached prompts from other workers and nodes' kv-offloads where quicker; yes on a quick network",
    )
    lease_s: float = option(30.0, help="how long staged KV outlives its reader's call; longer than any read takes")
    max_stagings: int = option(256, help="prompts staged for readers at a time; further ones are refused")
    max_fetches: int = option(32, help="prompts fetched from other workers at a time; further ones wait")
    read_timeout_s: float = option(5.0, help="longest wait for one read of KV, and for a prefill worker's first answer")
    prefill_timeout_s: float = option(60.0, help="longest wait for the next KV of a prompt that is computed elsewhere")

    @property
    def risks(self) -> list[str]:
        found = super().risks
        if self.tls is not None and self.transport == "nixl":
            found.append("TLS does not cover NIXL, KV travels in the clear: set transport to grpc if others can listen")
        return found

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("block_size", "max_num_seqs", "max_waiting", "max_stagings", "max_fetches"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} must be at least 1")
        for key in ("threads", "num_blocks", "context_length", "simulated_answer_tokens"):
            if getattr(self, key) < 0:
                raise ValueError(f"{key} must not be negative")
        if self.performance and self.performance not in PRESETS:
            raise ValueError(f"performance is {self.performance!r}; there are {', '.join(PRESETS)}")
        for key in ("lease_s", "read_timeout_s", "prefill_timeout_s", "speed_up"):
            if getattr(self, key) <= 0:
                raise ValueError(f"{key} must be above 0")
        if not self.offload_bytes_per_s >= 0:
            raise ValueError("offload_bytes_per_s must not be negative")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError("max_num_batched_tokens must be at least max_num_seqs: one token for each request")
        if self.read_timeout_s >= self.lease_s:
            raise ValueError("read_timeout_s must be below lease_s: a read must end before the blocks are reused")
