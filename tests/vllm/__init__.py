"""Tests that need vLLM, which has an environment of its own: `make test-vllm` runs them."""
