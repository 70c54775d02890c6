"""Between the planner's words and those of its contract, and the sentences of its log."""

import math
from dataclasses import replace

from armature.planning.capacity import Predicted, Targets
from armature.planning.decision import Decision
from armature.planning.fleet import Counts, Fleet
from armature.planning.observer import Seen
from armature.planning.policy import PlannerPolicy
from armature.steering.rehearsing import Rehearsed
from armature.v1 import planner_pb2 as pb


def counts_to(counts: Counts) -> pb.WorkerCounts:
    return pb.WorkerCounts(aggregated=counts.aggregated, prefill=counts.prefill, decode=counts.decode)


def counts_from(counts: pb.WorkerCounts) -> Counts:
    return Counts(counts.aggregated, counts.prefill, counts.decode)


def fleet_to(fleet: Fleet, wanted: Counts) -> pb.FleetState:
    return pb.FleetState(
        ready=counts_to(fleet.ready),
        starting=counts_to(fleet.starting),
        draining=fleet.draining,
        wanted=counts_to(wanted),
    )


def targets_to(policy: PlannerPolicy, *, is_paused: bool) -> pb.PlannerTargets:
    targets, limits = policy.targets, policy.limits
    return pb.PlannerTargets(
        ttft_s=targets.ttft_s,
        itl_s=targets.itl_s,
        quantile=targets.quantile,
        min_workers=limits.min_workers,
        max_workers=limits.max_workers,
        max_gpus=limits.gpus,
        is_paused=is_paused,
    )


def with_targets(policy: PlannerPolicy, told: pb.PlannerTargets) -> PlannerPolicy:
    """The policy with other targets and limits.

    Raises:
        ValueError: a number is out of its range.
    """
    targets = replace(policy.targets, ttft_s=told.ttft_s, itl_s=told.itl_s, quantile=told.quantile)
    limits = replace(policy.limits, min_workers=told.min_workers, max_workers=told.max_workers, gpus=told.max_gpus)
    return replace(policy, targets=targets, limits=limits)


def traffic_to(seen: Seen, quantile: float) -> pb.Traffic:
    """What was seen between two steps; lengths are of all requests that are remembered."""
    arrivals = seen.arrivals
    prompt, total = arrivals.new_tokens + arrivals.cached_tokens, float(arrivals.cached_tokens.sum())
    count = max(arrivals.num_requests, 1)
    return pb.Traffic(
        span_s=seen.now_s - seen.since_s,
        arrivals=seen.num_arrivals,
        in_flight=max(seen.in_flight, 0),
        failures=seen.failures,
        ttft_s=seen.ttft_s.quantile(quantile),
        itl_s=seen.itl_s.quantile(quantile),
        queue_s=seen.queue_s.quantile(quantile),
        mean_prompt_tokens=float(prompt.sum()) / count,
        mean_output_tokens=float(arrivals.output_tokens.sum()) / count,
        cached_share=total / max(float(prompt.sum()), 1.0),
        start_up_s=seen.start_up_s,
    )


def plan_to(decision: Decision) -> pb.Plan:
    plan = pb.Plan(
        counts=counts_to(decision.counts),
        flips_to_prefill=decision.flips.to_prefill,
        flips_to_decode=decision.flips.to_decode,
        reason=decision.reason.value,
        text=decision.text,
        is_change=decision.is_change,
        demand=decision.demand,
        predicted=_predicted(decision.predicted),
        rejected=[
            pb.Alternative(counts=counts_to(one.counts), why_not=one.why_not, predicted=_predicted(one.predicted))
            for one in decision.rejected
        ],
    )
    if decision.forecast is not None:
        forecast = decision.forecast
        plan.forecaster, plan.forecast, plan.forecast_high = forecast.forecaster, forecast.point, forecast.value
    return plan


def rehearsal_to(rehearsed: Rehearsed) -> pb.RehearseResponse:
    scene, verdict = rehearsed.scene, rehearsed.verdict
    return pb.RehearseResponse(
        counts=counts_to(scene.counts),
        attained=verdict.attained if verdict else 0.0,
        attained_now=verdict.attained_now if verdict else 0.0,
        num_requests=scene.arrivals.num_requests,
        pace=scene.pace,
        problem=rehearsed.problem,
    )


def sentence(decision: Decision, fleet: Fleet, targets: Targets) -> str:
    """The whole decision in words: what, why, what it expects, and what else was weighed."""
    parts = [f"{decision.counts} instead of {fleet.wanted} ({decision.reason.value}: {decision.text})"]
    if any(decision.flips):
        turned = [
            f"{count} to {role}"
            for count, role in ((decision.flips.to_prefill, "prefill"), (decision.flips.to_decode, "decode"))
            if count
        ]
        parts.append(f"{' and '.join(turned)} by a change of role")
    if decision.forecast is not None:
        parts.append(f"{decision.demand:.2f} workers' work is foreseen ({decision.forecast.forecaster})")
    if decision.predicted is not None:
        parts.append(f"that comes to {_expected(decision.predicted, targets)}{_corrected(decision)}")
    parts += [f"not {one.counts}, which {one.why_not}" for one in decision.rejected]
    return "; ".join(parts)


def judged(rehearsed: Rehearsed) -> str:
    """A rehearsal in words."""
    if rehearsed.verdict is None:
        return f"not rehearsed: {rehearsed.problem}"
    attained, now = rehearsed.verdict
    return (
        f"rehearsed with {rehearsed.scene.arrivals.num_requests} requests: targets hold in {attained:.0%} of windows, "
        f"in {now:.0%} as it is"
    )


def _corrected(decision: Decision) -> str:
    """What a rehearsal, which knows the model alone, does not count in."""
    told = (("TTFT", decision.notes.get("ttft_correction", 1.0)), ("ITL", decision.notes.get("itl_correction", 1.0)))
    apart = [f"{name} is measured to be {times:.2g} times the model's" for name, times in told if abs(times - 1) > 0.1]
    return f", as {' and '.join(apart)}" if apart else ""


def _expected(predicted: Predicted, targets: Targets) -> str:
    if not math.isfinite(predicted.ttft_s):
        return "no service"
    return (
        f"TTFT {predicted.ttft_s:.3g} s of {targets.ttft_s:g} s, "
        f"ITL {predicted.itl_s * 1000:.3g} ms of {targets.itl_s * 1000:g} ms"
    )


def _predicted(predicted: Predicted | None) -> pb.Predicted | None:
    return None if predicted is None else pb.Predicted(**predicted._asdict())
