"""Random numbers that are a function of (seed, output position, token): nothing is drawn, nothing gets out of step.

The generator is SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014), its
state advanced straight to the wanted position, and from there to the wanted token.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

GAMMA = np.uint64(0x9E3779B97F4A7C15)
MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
MIX_2 = np.uint64(0x94D049BB133111EB)
MASK = (1 << 64) - 1


def counters(seeds: Sequence[int], positions: Sequence[int]) -> NDArray[np.int64]:
    """64 mixed bits for each pair, `[n]`; seeds count modulo 2**64."""
    seed = np.array([value & MASK for value in seeds], dtype=np.uint64)
    position = np.array(positions, dtype=np.uint64)
    # The seed is mixed before the position is added: neighbouring seeds would otherwise share numbers one step apart.
    return _mix(_mix(seed + GAMMA) + GAMMA * (position + np.uint64(1))).view(np.int64)


def token_steps(tokens: torch.Tensor) -> torch.Tensor:
    """How far the generator's state is advanced for each of the tokens (int64, any shape)."""
    return (tokens + 1).mul_(_signed(GAMMA))  # int64 wraps, so it counts modulo 2**64 as the rest does


def exponentials(counters: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """A number from the exponential distribution of mean 1 for each token, `[rows, tokens]` float32.

    `counters` is `[rows, 1]` int64, `steps` `[tokens]` or `[rows, tokens]`; a token has the same number whichever
    others are asked for.
    """
    bits = steps + counters
    bits = _fold(bits, 30).mul_(_signed(MIX_1))
    bits = _fold(bits, 27).mul_(_signed(MIX_2))
    # 52 bits and a half: neither 0 nor 1, so that the logarithm is finite and not 0.
    uniform = _shift(_fold(bits, 31), 12).double().add_(0.5).mul_(2.0**-52)
    return uniform.log_().neg_().float()


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    value = (value ^ (value >> np.uint64(30))) * MIX_1
    value = (value ^ (value >> np.uint64(27))) * MIX_2
    return value ^ (value >> np.uint64(31))


def _fold(bits: torch.Tensor, by: int) -> torch.Tensor:
    return bits.bitwise_xor_(_shift(bits, by))


def _shift(bits: torch.Tensor, by: int) -> torch.Tensor:
    """To the right, zeros coming in, which int64 has no operator for."""
    return (bits >> by).bitwise_and_((1 << (64 - by)) - 1)


def _signed(value: np.uint64) -> int:
    return int(value.astype(np.int64))
