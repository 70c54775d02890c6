"""The Pareto frontiers, as a page and as PNG."""

from armature.cli.deployment.request import Asked
from armature.cli.deployment.solve import Solved
from armature.cli.deployment.tables import BEST_HEADER, best_rows
from armature.cli.report.charts import COLORS, Chart, Line
from armature.cli.report.page import chart_page


def pareto(solved: Solved) -> Chart:
    """What a GPU carries by how quickly users get their tokens; disaggregated deployments are dashed."""
    colors = dict(zip(dict.fromkeys(gpu for gpu, _ in solved.frontiers), COLORS, strict=False))
    lines = [
        Line(
            f"{gpu} {mode}",
            [(one.tokens_per_s_per_user, one.tokens_per_s_per_gpu) for one in points],
            colors.get(gpu, COLORS[-1]),
            is_dashed=mode == "disaggregated",
        )
        for (gpu, mode), points in solved.frontiers.items()
        if points
    ]
    return Chart("Throughput of a GPU by speed for a user", "tokens/s of a user", "tokens/s of a GPU", lines)


def about(asked: Asked) -> str:
    """What was searched, in a sentence."""
    work, targets = asked.work, asked.targets
    return (
        f"{asked.model} by {asked.backend}, prompts of {work.isl:,} tokens ({work.cached_tokens:,} cached), answers of "
        f"{work.osl:,}, TTFT up to {targets.ttft_s:g} s without waiting, at most {asked.bounds.gpus} GPUs of "
        f"{', '.join(asked.gpus)}"
    )


def page(asked: Asked, solved: Solved) -> str:
    """One HTML file with the best deployments and the frontiers."""
    return chart_page("Deployments", about(asked), BEST_HEADER, dict(best_rows(solved)), [pareto(solved)])
