"""What a planner counts, for Prometheus: targets beside what is, and what was done about the difference."""

from prometheus_client import Counter, Gauge, Histogram

from armature.connectors.connector import Problem
from armature.planning.decision import Decision
from armature.planning.fleet import Counts, Fleet
from armature.planning.observer import Seen
from armature.planning.policy import PlannerPolicy

is_leader = Gauge("armature_planner_is_leader", "1 while this planner's plans are carried out.")
decisions = Counter("armature_planner_decisions_total", "Steps, by the reason of what was decided.", ["reason"])
orders = Counter("armature_planner_orders_total", "Plans that change something, by what became of them.", ["outcome"])
problems = Counter("armature_planner_problems_total", "What was in the way of plans, by who can mend it.", ["reason"])
step_s = Histogram(
    "armature_planner_step_seconds",
    "Time that a step takes, rehearsals included.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
start_up_s = Histogram(
    "armature_planner_start_up_seconds",
    "From asking for a worker to its being ready.",
    buckets=(1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0),
)
_workers = Gauge("armature_planner_workers", "Workers by role, as they are and as they are wanted.", ["role", "state"])
_draining = Gauge("armature_planner_draining_workers", "Workers that end what they have.")
_ttft_target_s = Gauge("armature_planner_ttft_target_seconds", "Target for the time to first token.")
_ttft_s = Gauge("armature_planner_ttft_seconds", "Time to first token at the targets' quantile, since the last step.")
_ttft_predicted_s = Gauge("armature_planner_ttft_predicted_seconds", "The same with the wanted workers, as predicted.")
_itl_target_s = Gauge("armature_planner_itl_target_seconds", "Target for the time between tokens.")
_itl_s = Gauge("armature_planner_itl_seconds", "Time between tokens at the targets' quantile, since the last step.")
_itl_predicted_s = Gauge("armature_planner_itl_predicted_seconds", "The same with the wanted workers, as predicted.")
_demand = Gauge("armature_planner_demand_workers", "Foreseen work, in workers that would be busy all the time.")
_arrivals = Gauge("armature_planner_requests_per_second", "Requests that came since the last step, per second.")
_forecast_loss = Gauge(
    "armature_planner_forecast_loss_workers",
    "How far forecasts of the demand's high end have lately been off, by forecaster, as pinball loss.",
    ["forecaster"],
)
_steps = Counter(
    "armature_planner_attained_steps_total",
    "Steps before which requests had their first token, by whether all targets held for them.",
    ["outcome"],
)

_ROLES = ("aggregated", "prefill", "decode")


def tell(policy: PlannerPolicy, fleet: Fleet, seen: Seen, decision: Decision) -> None:
    """Show a step."""
    for state, counts in (("ready", fleet.ready), ("starting", fleet.starting), ("wanted", decision.counts)):
        _show(state, counts)
    _draining.set(fleet.draining)
    targets, predicted = policy.targets, decision.predicted
    _ttft_target_s.set(targets.ttft_s)
    _itl_target_s.set(targets.itl_s)
    _ttft_s.set(seen.ttft_s.quantile(targets.quantile))
    _itl_s.set(seen.itl_s.quantile(targets.quantile))
    _ttft_predicted_s.set(predicted.ttft_s if predicted else 0.0)
    _itl_predicted_s.set(predicted.itl_s if predicted else 0.0)
    _demand.set(decision.demand)
    _arrivals.set(seen.num_arrivals / max(seen.now_s - seen.since_s, 1e-3))
    decisions.labels(decision.reason.value).inc()
    for forecaster, loss in decision.forecast.losses.items() if decision.forecast else ():
        _forecast_loss.labels(forecaster).set(loss)
    if seen.ttft_s.count:
        pairs = (seen.ttft_s, targets.ttft_s), (seen.itl_s, targets.itl_s)
        is_met = all(measured.quantile(targets.quantile) <= target_s for measured, target_s in pairs)
        _steps.labels("met" if is_met else "missed").inc()


def count(found: tuple[Problem, ...]) -> None:
    """Count what was in the way."""
    for problem in found:
        problems.labels(problem.kind.value).inc()


def _show(state: str, counts: Counts) -> None:
    for role, number in zip(_ROLES, counts, strict=True):
        _workers.labels(role, state).set(number)
