"""What vLLM may be told beside the worker's settings, and what is said where it can't be had."""

import importlib.util
from pathlib import Path

import pytest

from armature.blocks.hashing import BlockHasher
from armature.engines.vllm.launch import VllmSettings, launch, parse_args


def test_engine_arguments_are_a_json_object() -> None:
    assert parse_args("") == {}
    assert parse_args('{"tensor_parallel_size": 2}') == {"tensor_parallel_size": 2}


@pytest.mark.parametrize(("text", "error"), [("{", "vllm_args is no JSON"), ("[1]", "must be a JSON object")])
def test_what_is_no_json_object_is_refused_by_name(text: str, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        parse_args(text)


def test_what_follows_from_the_workers_settings_can_t_be_set_besides() -> None:
    with pytest.raises(ValueError, match="vllm_args sets block_size"):
        VllmSettings(model=Path("m"), model_name="m", args={"block_size": 8})


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_its_name_is_in_the_error() -> None:
    with pytest.raises(ImportError, match="vllm"):
        launch(VllmSettings(model=Path("m"), model_name="m"), BlockHasher(b"", 16))
