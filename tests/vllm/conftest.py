"""Where vLLM is: the interpreter named by VLLM_PYTHON. Without it these tests are not collected."""

import os

import pytest

collect_ignore_glob = [] if os.environ.get("VLLM_PYTHON") else ["test_*.py"]


@pytest.fixture(scope="session")
def vllm_python() -> str:
    """An interpreter that has vLLM and what workers need."""
    return os.environ["VLLM_PYTHON"]
