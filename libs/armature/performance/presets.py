"""Models on their GPUs, ready to be simulated."""

from typing import NamedTuple

from armature.performance.roofline import RooflineModel
from armature.performance.step import PerformanceModel

# Fitted to the step times of aiconfigurator-core 0.12.0 (Qwen/Qwen3-32B, h200_sxm, trtllm, tp_size=2), relative least
# squares: prompts of 128 to 8,192 new tokens behind 0 to 98,304 cached ones (49 points, at most 10 % off, above 1,000
# tokens at most 5 %), decode with batches of 1 to 256 and contexts of 512 to 32,768 (36 points, at most 5 % off).
_QWEN3_32B_TP2_H200 = RooflineModel(
    memory_s=10.974e-3,
    memory_seq_s=22.61e-6,
    compute_s=7.847e-3,
    compute_token_s=46.29e-6,
    pair_s=2.0048e-9,
    context_token_s=31.22e-9,
)


class Preset(NamedTuple):
    """A model on its GPUs."""

    model: str
    performance: PerformanceModel
    kv_tokens: int
    """Tokens whose KV fits beside the weights."""
    token_bytes: int
    """KV of one token."""
    gpus: int = 1


PRESETS = {
    # 64 layers of 8 KV heads of 128 in 16 bits are 256 KiB a token. Of 2 x 141 GB weights take 65.5; 0.9 of all less
    # the weights is 188 GB, and 1,400 blocks of 512 tokens are all of that.
    "qwen3-32b-tp2-h200": Preset("Qwen3-32B", _QWEN3_32B_TP2_H200, 1400 * 512, 262_144, gpus=2),
}
