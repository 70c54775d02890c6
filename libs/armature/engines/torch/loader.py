"""Loads a local checkpoint for the paged attention, or says in one sentence why it cannot be served."""

import json
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch

from armature.engines.torch import attention
from armature.engines.torch.compatibility import ModelError, refuse_unless_supported
from armature.engines.torch.memory import BlockLayout
from armature.engines.torch.packing import pack_linears

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SAMPLES_PER_FILE = 64
SAMPLE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a checkpoint's files say, before any weight is loaded."""

    path: Path
    config: dict[str, Any]
    context_length: int
    eos_token_ids: tuple[int, ...]
    device: torch.device
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in evaluation mode, its attention going through `attention.NAME`."""

    module: Any
    layout: BlockLayout
    vocab_size: int

    @property
    def hidden_size(self) -> int:
        """Components of a hidden state; 0: the model does not tell its last hidden states."""
        return 0 if self.module.base_model is self.module else int(self.module.config.hidden_size)

    def logits_and_hidden(self, step: attention.PagedStep) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits as `logits` has them, and the last hidden states `[tokens, hidden_size]` of all the step's tokens."""
        seen: list[torch.Tensor] = []
        # Whatever stands between the decoder's stack and the logits (scales, caps) stays as the model has it.
        hook = self.module.base_model.register_forward_hook(
            lambda module, inputs, output: seen.append(output.last_hidden_state)
        )
        try:
            logits = self.logits(step)
        finally:
            hook.remove()
        return logits, seen[0][0]

    def logits(self, step: attention.PagedStep) -> torch.Tensor:
        """One forward pass: logits `[rows, vocab]` of the step's `logit_rows`, in the model's dtype."""
        batch = step.batch
        output = self.module(
            input_ids=batch.input_ids,
            position_ids=batch.positions,
            use_cache=False,
            logits_to_keep=batch.logit_rows,
            paged_step=step,
        )
        return output.logits[0]


def open_checkpoint(
    path: Path, device: str = "auto", dtype: str = "auto", context_length: int | None = None
) -> Checkpoint:
    """Read and judge a checkpoint directory.

    Raises:
        ModelError: the directory cannot be read, or holds a model that would be computed wrongly.
    """
    if not path.is_dir():
        raise ModelError(f"{path} is not a directory")
    config = _read_json(path / "config.json")
    limit = _context_limit(config)
    if limit is None and context_length is None:
        raise ModelError("config.json: `max_position_embeddings` is missing; give a context length")
    if limit is not None and context_length is not None and context_length > limit:
        raise ModelError(f"config.json: `max_position_embeddings` is {limit}, less than the {context_length} asked for")
    context = context_length or limit or 0
    refuse_unless_supported(config, context)
    if not any(path.glob("*.safetensors")):
        raise ModelError(f"{path} holds no .safetensors file; other weight formats are not supported")
    chosen = _device(device)
    return Checkpoint(path, config, context, _eos_token_ids(path, config), chosen, _dtype(dtype, config, chosen))


def load(checkpoint: Checkpoint, block_size: int) -> LoadedModel:
    """Load the weights onto the device.

    Raises:
        ModelError: transformers cannot load it.
    """
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    attention.register()
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        # With the defaults of the model's class filled in, the configuration may say more than the file.
        config: Any = AutoConfig.from_pretrained(checkpoint.path, **local)
        refuse_unless_supported(config.to_dict(), checkpoint.context_length)
        module: Any = AutoModelForCausalLM.from_pretrained(
            checkpoint.path,
            config=config,
            dtype=checkpoint.dtype,
            attn_implementation=attention.NAME,
            use_safetensors=True,
            **local,
        )
    except ModelError:
        raise
    except Exception as error:
        # Whatever a checkpoint breaks in transformers or below it is one and the same to an operator.
        if isinstance(error, KeyError) and attention.NAME in error.args:
            reason = "its attention does not go through the attention interface"
        else:
            reason = str(error).strip().partition("\n")[0]
        raise ModelError(f"transformers cannot load {checkpoint.path}: {reason}") from error
    module.eval().to(checkpoint.device)
    if checkpoint.device.type == "cpu":
        with torch.inference_mode():
            pack_linears(module)
    heads = int(config.num_attention_heads)
    layout = BlockLayout(
        num_layers=int(config.num_hidden_layers),
        kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        head_dim=int(getattr(config, "head_dim", None) or config.hidden_size // heads),
        block_size=block_size,
        dtype=checkpoint.dtype,
    )
    return LoadedModel(module, layout, int(config.vocab_size))


def fingerprint(checkpoint: Checkpoint, layout: BlockLayout) -> bytes:
    """16 bytes that are equal where KV bytes mean the same: configuration, weights, dtype and block layout.

    Of each weights file the header, the size and evenly spread samples are read, not all of it.
    """
    hasher = blake2b(digest_size=16)
    config = {key: value for key, value in checkpoint.config.items() if key != "transformers_version"}
    hasher.update(json.dumps(config, sort_keys=True).encode())
    hasher.update(repr((str(layout.dtype), layout.num_layers, layout.kv_heads, layout.head_dim)).encode())
    hasher.update(repr((layout.block_size, layout.block_bytes)).encode())
    for file in sorted(checkpoint.path.glob("*.safetensors")):
        size_bytes = file.stat().st_size
        hasher.update(f"{file.name} {size_bytes}".encode())
        with file.open("rb") as weights:
            header_bytes = int.from_bytes(weights.read(8), "little")
            hasher.update(weights.read(min(header_bytes, size_bytes)))
            for sample in range(SAMPLES_PER_FILE):
                weights.seek(size_bytes * sample // SAMPLES_PER_FILE)
                hasher.update(weights.read(SAMPLE_BYTES))
    return hasher.digest()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} holds no JSON object")
    return found


def _context_limit(config: dict[str, Any]) -> int | None:
    for key in ("max_position_embeddings", "n_positions", "max_seq_len"):
        if config.get(key):
            return int(config[key])
    return None


def _eos_token_ids(path: Path, config: dict[str, Any]) -> tuple[int, ...]:
    generation = path / "generation_config.json"
    found: set[int] = set()
    for source in (config, _read_json(generation) if generation.exists() else {}):
        value = source.get("eos_token_id")
        found.update([] if value is None else value if isinstance(value, list) else [value])
    return tuple(sorted(found))


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelError(f"`{name}` is no device") from error
    if device.type not in ("cpu", "cuda"):
        raise ModelError(f"device `{name}` is not supported; cpu and cuda are")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"device `{name}` was asked for, but there is no CUDA here")
    return torch.device("cuda", torch.cuda.current_device()) if name == "cuda" else device


def _dtype(name: str, config: dict[str, Any], device: torch.device) -> torch.dtype:
    if name == "auto":
        stored = config.get("dtype") or config.get("torch_dtype") or "float32"
        name = "float32" if device.type == "cpu" else str(stored)
    if name not in DTYPES:
        raise ModelError(f"dtype `{name}` is not supported; auto, {', '.join(DTYPES)} are")
    return DTYPES[name]
