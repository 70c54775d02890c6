"""A small language model that travels with the package, so that a cell can be tried without a download.

A Llama of 3.4 million parameters trained on the standard library's docstrings (`python -m
armature.engines.demo_model.train`). It shows that serving works; what it says is not to be relied on.
"""

from pathlib import Path

DEMO_MODEL_NAME = "demo"
"""The name that clients ask for."""

DEMO_MODEL_PATH = Path(__file__).parent / "weights"
"""A model directory as Hugging Face libraries know it: config, tokenizer, chat template, safetensors."""
