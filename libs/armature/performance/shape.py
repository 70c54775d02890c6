"""What a planned step comes to for a performance model: the same for engines that pretend and for simulations."""

from armature.performance.step import StepShape
from armature.scheduling.plan import StepPlan


def shape_of(plan: StepPlan) -> StepShape:
    """The shape of a step; running answers attend to all their tokens, the newest included."""
    context_tokens = sum([len(sequence.token_ids) for sequence in plan.decodes])
    pairs = 0.0
    for piece in plan.chunks:
        pairs += piece.count * (piece.start + piece.count / 2)
    return StepShape(len(plan.decodes), context_tokens, plan.prefill_tokens, pairs)
