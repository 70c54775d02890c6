"""What is loaded, what is refused and with which sentence."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from armature.engines.torch.compatibility import ModelError
from armature.engines.torch.loader import load, open_checkpoint
from armature.engines.torch.packing import PackedLinear
from armature.engines.torch.runner import TorchRunner, torch_engine_runner
from armature.engines.torch.selfcheck import check_model
from tests.support.models import edit_config, make_model
from tests.support.stepping import Driver


@pytest.fixture
def copy(checkpoint: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    """A copy of a tiny model with changes to its configuration."""

    def of(kind: str = "llama", **changes: Any) -> Path:
        path = tmp_path / kind
        shutil.copytree(checkpoint(kind), path)
        edit_config(path, **changes)
        return path

    return of


def open_runner(path: Path, **options: Any) -> TorchRunner:
    return torch_engine_runner(path, model_name="tiny", device="cpu", num_blocks=8, **options)


REFUSALS: list[tuple[str, dict[str, Any], str]] = [
    ("mistral", {"sliding_window": 256}, r"`sliding_window` is 256, shorter than the context of 1024 tokens"),
    ("qwen2", {"layer_types": ["full_attention", "sliding_attention"]}, r"`layer_types` has `sliding_attention`"),
    ("qwen3", {"layer_types": ["linear_attention", "full_attention"]}, r"`layer_types` has `linear_attention`"),
    ("llama", {"attn_logit_softcapping": 30.0}, r"`attn_logit_softcapping` caps attention scores"),
    ("llama", {"attention_sinks": True}, r"`attention_sinks` .* has attention sinks"),
    ("llama", {"model_type": "gpt_oss"}, r"`model_type` \(gpt_oss\) has attention sinks"),
    ("llama", {"kv_lora_rank": 8}, r"`kv_lora_rank` is multi-head latent attention"),
    ("llama", {"mamba_d_state": 16}, r"`mamba_d_state` belongs to state-space or hybrid layers"),
    ("llama", {"is_encoder_decoder": True}, r"`is_encoder_decoder` asks for cross-attention"),
    ("llama", {"add_cross_attention": True}, r"`add_cross_attention` asks for cross-attention"),
    ("llama", {"alibi": True}, r"`alibi` asks for ALiBi"),
    ("llama", {"model_type": "bloom"}, r"`model_type` asks for ALiBi"),
    ("llama", {"is_causal": False}, r"`is_causal` asks for attention to later tokens"),
    ("llama", {"quantization_config": {"quant_method": "awq"}}, r"`quantization_config` \(awq\)"),
    ("llama", {"vision_config": {}}, r"`vision_config` makes it a multimodal model"),
    ("llama", {"auto_map": {"AutoConfig": "x.Y"}}, r"`auto_map` needs the checkpoint's own code"),
    ("llama", {"attention_chunk_size": 64}, r"`attention_chunk_size` is chunked attention"),
    ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, r"`rope_parameters` has type `dynamic`"),
    ("llama", {"rope_parameters": None, "rope_scaling": {"type": "longrope"}}, r"`rope_scaling` has type `longrope`"),
    ("llama", {"max_position_embeddings": None}, r"`max_position_embeddings` is missing"),
    ("llama", {"model_type": "no_such_model"}, r"transformers cannot load"),
]


@pytest.mark.parametrize(("kind", "changes", "sentence"), REFUSALS, ids=[next(iter(one[1])) for one in REFUSALS])
def test_a_model_that_would_be_computed_wrongly_is_refused(
    copy: Callable[..., Path], kind: str, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ModelError, match=sentence) as caught:
        open_runner(copy(kind, **changes))
    assert "\n" not in str(caught.value)


def test_a_directory_that_cannot_be_read_is_refused(copy: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="missing is not a directory"):
        open_runner(tmp_path / "missing")
    with pytest.raises(ModelError, match=r"config\.json cannot be read"):
        open_runner(tmp_path)
    path = copy()
    (path / "model.safetensors").rename(path / "model.bin")
    with pytest.raises(ModelError, match=r"holds no \.safetensors file"):
        open_runner(path)
    (path / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json cannot be read"):
        open_runner(path)


def test_a_damaged_weights_file_is_refused(copy: Callable[..., Path]) -> None:
    path = copy()
    weights = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ModelError, match="transformers cannot load"):
        open_runner(path)


def test_a_context_that_a_window_covers_is_served(copy: Callable[..., Path]) -> None:
    runner = open_runner(copy("mistral", sliding_window=256), context_length=256)
    assert runner.info.context_length == 256


def test_a_context_longer_than_the_models_is_refused(copy: Callable[..., Path]) -> None:
    with pytest.raises(ModelError, match="`max_position_embeddings` is 1024, less than the 2048 asked for"):
        open_runner(copy(), context_length=2048)


@pytest.mark.parametrize(
    ("kind", "extra", "removed", "sentence"),
    [
        ("gptj", {"rotary_dim": 8}, None, "does not go through the attention interface"),
        ("codegen", {"rotary_dim": 8, "num_attention_heads": 4}, None, "0 use the attention interface"),
        (
            "gemma2",
            {"head_dim": 16, "max_position_embeddings": 4096},
            "attn_logit_softcapping",
            "caps attention scores",
        ),
        (
            "mistral",
            {"num_key_value_heads": 2, "max_position_embeddings": 8192},
            "sliding_window",
            "`sliding_window` is 4096",
        ),
    ],
)
def test_what_the_file_does_not_say_is_found_out_in_loading(
    kind: str, extra: dict[str, Any], removed: str | None, sentence: str, tmp_path: Path
) -> None:
    """Keys that are missing take the defaults of the model's class, and some models go ways of their own."""
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "n_positions": 64}
    config = AutoConfig.for_model(kind, **(sizes | extra))
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    if removed:
        edit_config(tmp_path, **{removed: None}, layer_types=None)
    with pytest.raises(ModelError, match=sentence):
        open_runner(tmp_path)


@pytest.mark.parametrize("passed", [{"softcap": 20.0}, {"s_aux": torch.zeros(4)}, {"sliding_window": 8}])
def test_a_model_that_asks_for_other_scores_is_found_out_by_the_self_check(
    passed: dict[str, Any], copy: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_checkpoint(copy(), "cpu")
    model = load(checkpoint, block_size=16)
    for layer in model.module.model.layers:
        forward = layer.self_attn.forward
        monkeypatch.setattr(layer.self_attn, "forward", partial(forward, **passed))
    with pytest.raises(ModelError, match=next(iter(passed)).replace("_", ".")):
        check_model(model, checkpoint.context_length)


def test_a_model_whose_logits_differ_is_found_out_by_the_self_check(copy: Callable[..., Path]) -> None:
    checkpoint = open_checkpoint(copy(), "cpu")
    model = load(checkpoint, block_size=16)
    rotary = model.module.model.rotary_emb
    forward = rotary.forward
    rotary.forward = lambda x, position_ids: forward(x, torch.arange(x.shape[1])[None])
    with pytest.raises(ModelError, match="gives other logits with paged attention"):
        check_model(model, checkpoint.context_length)


def test_end_tokens_come_from_both_configurations(copy: Callable[..., Path]) -> None:
    assert open_checkpoint(copy(eos_token_id=[7, 2])).eos_token_ids == (0, 2, 7)


def test_types_and_devices_are_chosen_and_checked(copy: Callable[..., Path]) -> None:
    path = copy(dtype="bfloat16")
    assert open_checkpoint(path, device="cpu").dtype == torch.float32
    assert open_checkpoint(path, device="cpu", dtype="bfloat16").dtype == torch.bfloat16
    with pytest.raises(ModelError, match="dtype `int4` is not supported"):
        open_checkpoint(path, dtype="int4")
    with pytest.raises(ModelError, match="device `meta` is not supported"):
        open_checkpoint(path, device="meta")
    with pytest.raises(ModelError, match="`gpu7` is no device"):
        open_checkpoint(path, device="gpu7")


def test_the_info_tells_what_was_loaded(copy: Callable[..., Path]) -> None:
    path = copy()
    runner = torch_engine_runner(
        path, model_name="tiny", device="cpu", block_size=8, kv_cache_bytes=1 << 20, max_num_seqs=3
    )
    info = runner.info
    assert (info.name, info.model, info.model_path) == ("torch", "tiny", str(path))
    assert (info.context_length, info.vocab_size, info.eos_token_ids) == (1024, 512, (0, 2))
    assert info.num_blocks == (1 << 20) // info.block_bytes == runner.memory.num_blocks
    assert (info.block_size, info.max_num_seqs, info.max_num_batched_tokens) == (8, 3, 512)


def test_fingerprints_tell_weights_types_and_layouts_apart(copy: Callable[..., Path]) -> None:
    path = copy()
    first = open_runner(path).info.kv_fingerprint
    assert len(first) == 16
    assert open_runner(path).info.kv_fingerprint == first
    others = [open_runner(path, dtype="bfloat16"), open_runner(path, block_size=32)]
    weights = load_file(path / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][3] *= 1.5
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    others.append(open_runner(path))
    edit_config(path, rope_parameters={"rope_type": "default", "rope_theta": 5000.0})
    others.append(open_runner(path))
    assert len({first, *(one.info.kv_fingerprint for one in others)}) == 5


def test_linear_layers_are_packed_without_changing_the_answer(copy: Callable[..., Path]) -> None:
    runner = open_runner(copy("qwen2"))
    module = runner._model.module
    packed = [one for one in module.modules() if type(one) is PackedLinear]
    assert len(packed) == 2 * 7 + 1
    assert not [one for one in module.modules() if type(one) is torch.nn.Linear]


def test_a_model_with_tied_embeddings_answers(tmp_path: Path) -> None:
    path = make_model(tmp_path)
    edit_config(path, tie_word_embeddings=True)
    weights = load_file(path / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    prompt = list(range(3, 40))
    model = AutoModelForCausalLM.from_pretrained(path)
    model.generation_config.eos_token_id = None
    expected = model.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False)[0, len(prompt) :].tolist()
    assert Driver(open_runner(path)).generate(prompt, 8) == expected
    assert json.loads((path / "config.json").read_text())["tie_word_embeddings"]
