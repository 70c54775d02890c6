"""The same engine on hardware that is a given number of times as fast."""

from dataclasses import dataclass

from armature.performance.step import PerformanceModel, StepShape


@dataclass(frozen=True, slots=True)
class Faster:
    """Every step of `model` takes `1 / factor` of its time.

    Raises:
        ValueError: the factor is not above 0, or not finite.
    """

    model: PerformanceModel
    factor: float

    def __post_init__(self) -> None:
        if not 0 < self.factor < float("inf"):
            raise ValueError(f"the factor is {self.factor}; it must be above 0")

    def step_s(self, shape: StepShape) -> float:
        return self.model.step_s(shape) / self.factor

    def stretch_s(self, num_decodes: int, context_tokens: int, num_steps: int) -> float:
        return self.model.stretch_s(num_decodes, context_tokens, num_steps) / self.factor
