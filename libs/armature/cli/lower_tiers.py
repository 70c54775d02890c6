"""The options that say how quickly tiers below the devices are read."""

import argparse
from collections.abc import Callable, Mapping

from armature.index.tiers import LOWER_TIERS, Tier
from armature.offload.policy import TierShape

_NAMES = ("host", "disk", "remote")
_SPEEDS = ((50e9, 0.0), (12e9, 1e-4), (2e9, 2e-3))
"""Bytes a second and latency: a PCIe 5 slot, a pair of NVMe drives, an object store in the same building."""


def add_speeds(add: Callable[..., object]) -> None:
    """Add the options, by a group's or parser's `add_argument`."""
    for name, (bytes_per_s, latency_s) in zip(_NAMES, _SPEEDS, strict=True):
        where = "host memory to one worker" if name == "host" else f"{name} to one node"
        text = f"reading from {where} (default: %(default)g)"
        add(f"--{name}-bytes-per-s", type=float, default=bytes_per_s, metavar="N", help=text)
        text = "until the first byte (default: %(default)g)"
        add(f"--{name}-latency-s", type=float, default=latency_s, metavar="SECONDS", help=text)


def shapes_of(args: argparse.Namespace, num_blocks: tuple[int, int, int], block_bytes: int) -> Mapping[Tier, TierShape]:
    """The tiers of so many blocks; those of none are left out.

    Raises:
        ValueError: a number is out of its range.
    """
    shapes: dict[Tier, TierShape] = {}
    for tier, name, size in zip(LOWER_TIERS, _NAMES, num_blocks, strict=True):
        if size < 0:
            raise ValueError(f"--{name}-blocks is {size}; it must be at least 0")
        if size:
            shapes[tier] = TierShape(
                num_blocks=size,
                block_bytes=block_bytes,
                read_bytes_per_s=getattr(args, f"{name}_bytes_per_s"),
                read_latency_s=getattr(args, f"{name}_latency_s"),
            )
    return shapes
