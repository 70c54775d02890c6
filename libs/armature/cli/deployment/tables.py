"""What the search has come to, as tables for a terminal and as plain data for JSON."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from armature.cli.deployment.request import Asked
from armature.cli.deployment.solve import Solved
from armature.planning.search.replica import Point, Pool
from armature.planning.search.sizing import Fitted

BEST_HEADER = ("deployment", "batch", "tok/s/GPU", "tok/s/user", "TTFT s", "GPUs", "gain")


def best_rows(solved: Solved) -> Iterator[tuple[str, list[str]]]:
    """One for each type of GPU and mode: what carries most within the targets, were it always busy."""
    for (gpu, mode), line in solved.frontiers.items():
        one = solved.best.get((gpu, mode))
        if one is None:
            cells = ["nothing within the targets" if line else "nothing fits", "", "", "", "", "", ""]
        else:
            gain = solved.gain(gpu) if mode == "disaggregated" else None
            cells = [
                written(one), batches(one), f"{one.tokens_per_s_per_gpu:.0f}", f"{one.tokens_per_s_per_user:.1f}",
                f"{one.ttft_s:.2f}", str(one.gpus), f"{gain:.2f}x" if gain else "",
            ]  # fmt: skip
        yield f"{gpu} {mode}", cells


def best_table(solved: Solved) -> Table:
    table = _table("always busy", BEST_HEADER)
    for name, cells in best_rows(solved):
        table.add_row(name, *cells)
    return table


def sized_table(solved: Solved, asked: Asked) -> Table:
    """Deployments that hold the targets with queueing, and after them those that don't."""
    share = f"p{100 * asked.targets.quantile:g}"
    table = _table("for the traffic", ("deployment", "GPUs", "cost/h", f"{share} TTFT s", f"{share} ITL ms", "holds"))
    for one in solved.fitted:
        cost = f"{one.cost_per_hour:.2f}" if one.cost_per_hour else "-"
        waits = [f"{one.predicted.ttft_s:.2f}", f"{one.predicted.itl_s * 1000:.1f}"]
        style = "bold" if one.point == solved.winner else None if one.holds else "dim"
        table.add_row(
            f"{one.point.gpu} {one.point.mode}", written(one.point), str(one.point.gpus), cost, *waits,
            "yes" if one.holds else "no", style=style,
        )  # fmt: skip
    return table


def written(one: Point) -> str:
    """Short: `2 x tp2 + 1 x tp4`; prefill first."""
    return " + ".join([str(pool) for pool in one.pools])


def batches(one: Point) -> str:
    """Of answers, and what is computed of prompts beside them."""
    pool = one.pools[-1]
    return f"{pool.batch} / {pool.chunk_tokens}" if pool.chunk_tokens else str(pool.batch)


def document(asked: Asked, solved: Solved) -> Mapping[str, Any]:
    """Everything, as plain data."""
    work, targets = asked.work, asked.targets
    return {
        "model": asked.model,
        "backend": asked.backend,
        "workload": {"isl": work.isl, "osl": work.osl, "cached_tokens": work.cached_tokens},
        "targets": {"ttft_s": targets.ttft_s, "itl_s": targets.itl_s, "quantile": targets.quantile},
        "gpus": asked.bounds.gpus,
        "frontiers": [
            {"gpu": gpu, "mode": mode, "points": [_point(one) for one in line]}
            for (gpu, mode), line in solved.frontiers.items()
        ],
        "best": [_point(one) for one in solved.best.values()],
        "gains": {gpu: gain for gpu in asked.gpus if (gain := solved.gain(gpu)) is not None},
        "fitted": [_fitted(one) for one in solved.fitted],
        "winner": _point(solved.winner) if solved.winner else None,
        "missing": solved.missing,
    }


def _table(name: str, header: Sequence[str]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column(name, no_wrap=True)
    for i, text in enumerate(header):
        table.add_column(text, justify="left" if not i else "right", no_wrap=True)
    return table


def _point(one: Point) -> dict[str, Any]:
    return {
        "mode": one.mode,
        "gpu": one.gpu,
        "gpus": one.gpus,
        "ttft_s": one.ttft_s,
        "itl_s": one.itl_s,
        "requests_per_s": one.requests_per_s,
        "tokens_per_s_per_gpu": one.tokens_per_s_per_gpu,
        "tokens_per_s_per_user": one.tokens_per_s_per_user,
        "pools": [_pool(pool) for pool in one.pools],
    }


def _pool(pool: Pool) -> dict[str, Any]:
    split = pool.replica.split
    return {
        "role": pool.role,
        "replicas": pool.num_replicas,
        "tp": split.tp,
        "pp": split.pp,
        "dp": split.dp,
        "ep": split.ep,
        "batch": pool.batch,
        "chunk_tokens": pool.chunk_tokens,
        "kv_tokens": pool.replica.kv_tokens,
    }


def _fitted(one: Fitted) -> dict[str, Any]:
    met = {"ttft_s": one.predicted.ttft_s, "itl_s": one.predicted.itl_s, "load": one.predicted.load}
    return {"deployment": _point(one.point), "predicted": met, "holds": one.holds, "cost_per_hour": one.cost_per_hour}
