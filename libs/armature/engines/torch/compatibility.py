"""Which models the paged attention computes rightly, told from a checkpoint's `config.json`.

What is not plain causal full attention over rotary (or learned) positions would run and give wrong tokens, so it is
refused with a sentence that names the key. What a config cannot tell, the self-check after loading finds out.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

Config = Mapping[str, Any]

ROPE_TYPES = ("default", "linear", "llama3", "yarn", "proportional")
"""Rope types whose frequencies do not depend on how long a sequence is."""

LATENT_KEYS = ("kv_lora_rank", "q_lora_rank")
STATE_KEYS = (
    "ssm_cfg",
    "ssm_state_size",
    "state_size",
    "mamba_d_state",
    "mamba_n_heads",
    "conv_L_cache",
    "linear_num_key_heads",
    "attn_layer_period",
    "hybrid_override_pattern",
    "lru_width",
)
OTHER_INPUT_KEYS = ("vision_config", "audio_config", "text_config", "thinker_config")


class ModelError(Exception):
    """The model cannot be served by this engine; the message is one sentence that says why."""


def refuse_unless_supported(config: Config, context_length: int) -> None:
    """Check a checkpoint's configuration for a context of `context_length` tokens.

    Raises:
        ModelError: names the first key that this engine would compute wrongly.
    """
    for rule in RULES:
        for problem in rule(config, context_length):
            raise ModelError(f"config.json: {problem}")


def _structure(config: Config, _: int) -> Iterator[str]:
    if config.get("is_encoder_decoder") or config.get("add_cross_attention") or config.get("cross_attention_layers"):
        key = next(
            key for key in ("is_encoder_decoder", "add_cross_attention", "cross_attention_layers") if config.get(key)
        )
        yield f"`{key}` asks for cross-attention; only decoders are supported"
    for key in OTHER_INPUT_KEYS:
        if key in config:
            yield f"`{key}` makes it a multimodal model; only text decoders are supported"
    if config.get("auto_map"):
        yield "`auto_map` needs the checkpoint's own code, which is not run"
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "unknown")
        yield f"`quantization_config` ({method}) holds quantized weights, which are not supported"


def _layers(config: Config, context_length: int) -> Iterator[str]:
    for key in LATENT_KEYS:
        if config.get(key):
            yield f"`{key}` is multi-head latent attention, which is not supported"
    for key in STATE_KEYS:
        if config.get(key):
            yield f"`{key}` belongs to state-space or hybrid layers, which are not supported"
    window_fits = 0 < context_length <= (config.get("sliding_window") or 0)
    for kind in config.get("layer_types") or ():
        if kind != "full_attention" and not (kind == "sliding_attention" and window_fits):
            yield f"`layer_types` has `{kind}` layers; only full attention is supported"


def _windows(config: Config, context_length: int) -> Iterator[str]:
    window = config.get("sliding_window")
    # Qwen's configs carry a window and a switch that turns it off; with `layer_types`, those decide.
    is_used = config.get("use_sliding_window", True) and not config.get("layer_types")
    if window and is_used and window < context_length:
        yield (
            f"`sliding_window` is {window}, shorter than the context of {context_length} tokens; sliding windows are "
            f"not supported (a context length of {window} or less is)"
        )
    if config.get("attention_chunk_size"):
        yield "`attention_chunk_size` is chunked attention, which is not supported"


def _scores(config: Config, _: int) -> Iterator[str]:
    if config.get("attn_logit_softcapping"):
        yield "`attn_logit_softcapping` caps attention scores, which is not supported"
    if config.get("model_type") == "gpt_oss" or config.get("attention_sinks"):
        key = "attention_sinks" if config.get("attention_sinks") else "model_type"
        yield f"`{key}` ({config[key]}) has attention sinks, which are not supported"
    if config.get("alibi") or config.get("position_embedding_type") == "alibi" or config.get("model_type") == "bloom":
        key = next(key for key in ("alibi", "position_embedding_type", "model_type") if config.get(key))
        yield f"`{key}` asks for ALiBi positions, which are not supported"
    if config.get("use_bidirectional_attention") or config.get("is_causal") is False:
        key = "use_bidirectional_attention" if config.get("use_bidirectional_attention") else "is_causal"
        yield f"`{key}` asks for attention to later tokens, which is not supported"


def _rope(config: Config, context_length: int) -> Iterator[str]:
    key = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
    rope: Config = config.get(key) or {}
    nested = [value for value in rope.values() if isinstance(value, dict)]
    for one in nested or [rope]:
        kind = one.get("rope_type") or one.get("type") or "default"
        original = one.get("original_max_position_embeddings") or config.get("original_max_position_embeddings") or 0
        if kind not in ROPE_TYPES and not (kind == "longrope" and context_length <= original):
            yield f"`{key}` has type `{kind}`, whose frequencies depend on the sequence's length; it is not supported"


RULES: tuple[Callable[[Config, int], Iterator[str]], ...] = (_structure, _layers, _windows, _scores, _rope)
