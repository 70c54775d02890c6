"""A kustomize overlay that runs a deployment: the overlay `gpu`, with other counts, sizes and places.

The counts are where it begins: from there the planner keeps the targets, in the place of the overlay's autoscalers.
"""

from collections.abc import Mapping
from pathlib import Path

from armature.cli.deployment.pictures import about
from armature.cli.deployment.request import Asked
from armature.cli.options import UsageError
from armature.planning.search.replica import Point, Pool
from armature.planning.search.search import AGGREGATED

# What NVIDIA's feature discovery calls them.
_PRODUCTS = {
    "a100_sxm": "NVIDIA-A100-SXM4-80GB",
    "b200_sxm": "NVIDIA-B200",
    "gb200": "NVIDIA-GB200",
    "h100_sxm": "NVIDIA-H100-80GB-HBM3",
    "h200_sxm": "NVIDIA-H200",
    "l4": "NVIDIA-L4",
    "l40s": "NVIDIA-L40S",
}
_BASE = "gpu"


def write_overlay(folder: Path, asked: Asked, winner: Point) -> None:
    """Write the overlay; what is in the folder already by these names is replaced.

    Raises:
        UsageError: the folder is not beside the overlay `gpu`, can't be written, or no engine runs such replicas.
    """
    if not (folder.resolve().parent / _BASE / "kustomization.yaml").is_file():
        raise UsageError(f"--manifests {folder}: it must be beside the overlay `{_BASE}`, such as k8s/overlays/mine")
    wide = [pool for pool in winner.pools if pool.replica.split.gpus > 1]
    if wide:
        raise UsageError(
            f"--manifests: the winner's {wide[0].role} replicas are {wide[0].replica.split}, but the engine that comes "
            "with the images runs a replica on one GPU; say --replica-gpus 1"
        )
    try:
        folder.mkdir(exist_ok=True)
        for name, text in overlay(asked, winner).items():
            (folder / name).write_text(text)
    except OSError as error:
        raise UsageError(f"--manifests {folder} can't be written: {error}") from error


def overlay(asked: Asked, winner: Point) -> dict[str, str]:
    """The files by name."""
    pools = {_workload(pool): pool for pool in winner.pools}
    counts = {name: pools[name].num_replicas if name in pools else 0 for name in ("prefill-worker", "decode-worker")}
    is_split = winner.mode == "disaggregated"
    name = Path(asked.model).name
    lines = [
        f"# {about(asked)}:",
        f"# {winner}. Written by `armature plan`. The model must lie in the claim `models`.",
        "apiVersion: kustomize.config.k8s.io/v1beta1",
        "kind: Kustomization",
        "namespace: armature",
        "",
        f"resources: [../{_BASE}]",
        "",
        "configMapGenerator:",
        "  - name: model",
        "    behavior: merge",
        "    literals:",
        f"      - ARMATURE_MODEL=/models/{name}",
        f"      - ARMATURE_MODEL_NAME={name}",
        "",
        "replicas:",
        *(f"  - {{name: {workload}, count: {count}}}" for workload, count in counts.items()),
        "",
        "patches:",
        *(f"  - path: {workload}.yaml" for workload in (*pools, "planner", *(["router"] if is_split else []))),
        "  - target: {kind: HorizontalPodAutoscaler, name: (prefill|decode)-worker}",
        "    patch: |",
        "      apiVersion: autoscaling/v2",
        "      kind: HorizontalPodAutoscaler",
        "      metadata: {name: any}",
        "      $patch: delete",
    ]
    files = {"kustomization.yaml": "\n".join(lines) + "\n"}
    for workload, pool in pools.items():
        files[f"{workload}.yaml"] = _worker(workload, pool, winner)
    files["planner.yaml"] = _deployment("planner", _planner(asked, winner))
    if is_split:
        # Every prompt goes to a prefill worker, as the counts were reckoned.
        files["router.yaml"] = _deployment("router", {"ARMATURE_DISAGGREGATION": "always"})
    return files


def _planner(asked: Asked, winner: Point) -> dict[str, object]:
    env: dict[str, object] = {
        "ARMATURE_CONNECTOR": "kubernetes",
        "ARMATURE_MODE": winner.mode,
        "ARMATURE_TTFT_S": asked.targets.ttft_s,
        "ARMATURE_ITL_S": asked.targets.itl_s,
        "ARMATURE_MAX_WORKERS": asked.bounds.gpus,
    }
    if winner.mode == AGGREGATED:
        env["ARMATURE_WORKLOADS"] = "aggregated=deployment/decode-worker"
    return env


def _worker(workload: str, pool: Pool, winner: Point) -> str:
    replica = pool.replica
    most = max(pool.batch, 1)
    tokens = pool.chunk_tokens + most if pool.chunk_tokens else replica.max_num_batched_tokens
    env: dict[str, object] = {
        "ARMATURE_MAX_NUM_SEQS": most,
        "ARMATURE_MAX_NUM_BATCHED_TOKENS": tokens,
        "ARMATURE_KV_CACHE_BYTES": replica.kv_tokens * replica.token_bytes,
    }
    if pool.role == AGGREGATED:
        env["ARMATURE_ROLE"] = "aggregated"
    product = _PRODUCTS.get(winner.gpu)
    return _deployment(workload, env, f"nodeSelector: {{nvidia.com/gpu.product: {product}}}" if product else "")


def _deployment(name: str, env: Mapping[str, object], place: str = "") -> str:
    """A patch of its environment, and of where its pods go."""
    lines = [
        "apiVersion: apps/v1",
        "kind: Deployment",
        "metadata:",
        f"  name: {name}",
        "spec:",
        "  template:",
        "    spec:",
        *([f"      {place}"] if place else []),
        "      containers:",
        "        - name: service",
        "          env:",
        *(f'            - {{name: {variable}, value: "{value}"}}' for variable, value in env.items()),
    ]
    return "\n".join(lines) + "\n"


def _workload(pool: Pool) -> str:
    return "prefill-worker" if pool.role == "prefill" else "decode-worker"
