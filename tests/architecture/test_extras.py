"""An image installs one extra: what that brings must be enough, and nobody carries torch who does not compute."""

import json
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# Everything that is installed here and would not be in the image can't be imported.
GUARD = """
import json, sys

class Absent:
    def __init__(self, names):
        self.names = names
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"{name} is not in the image", name=name)

sys.meta_path.insert(0, Absent(frozenset(json.loads(sys.stdin.read()))))
"""
SIMULATE = """
from armature.engines.host.compose import make_engine
from armature.engines.host.settings import WorkerSettings
assert make_engine(WorkerSettings(engine="simulated")).info.name == "simulated"
"""


def wanted(extra: str) -> list[Requirement]:
    """What an image asks for by `armature[extra]`; plain `armature` if `extra` is empty."""
    lines = PROJECT["dependencies"] + (PROJECT["optional-dependencies"][extra] if extra else [])
    return [Requirement(line) for line in lines]


def installed(requirements: list[Requirement]) -> set[str]:
    """The distributions that come with the requirements, theirs included."""
    found: set[str] = set()
    seen: set[tuple[str, str]] = set()
    pending = [(requirement, extra) for requirement in requirements for extra in ("", *requirement.extras)]
    while pending:
        requirement, extra = pending.pop()
        if (requirement.name, extra) in seen:
            continue
        seen.add((requirement.name, extra))
        if requirement.name == PROJECT["name"]:
            needed = wanted(extra)
        else:
            distribution = metadata.distribution(requirement.name)
            found.add(distribution.name)
            lines = [Requirement(line) for line in distribution.requires or []]
            needed = [one for one in lines if one.marker is None or one.marker.evaluate({"extra": extra})]
        pending += [(one, its_extra) for one in needed for its_extra in ("", *one.extras)]
    return found


def run_in_image(extra: str, code: str) -> subprocess.CompletedProcess[str]:
    present = installed(wanted(extra))
    absent = [
        module
        for module, owners in metadata.packages_distributions().items()
        if present.isdisjoint(owners) and PROJECT["name"] not in owners and module not in sys.stdlib_module_names
    ]
    return subprocess.run(
        [sys.executable, "-c", GUARD + code],
        cwd=ROOT, input=json.dumps(absent), capture_output=True, text=True, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize("service", sorted(path.parent.name for path in (ROOT / "services").glob("*/app.py")))
def test_a_services_extra_brings_all_that_it_imports(service: str) -> None:
    done = run_in_image(service.replace("_", "-"), f"import services.{service}.app\n")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("role", ["prefill_worker", "decode_worker"])
def test_a_simulated_worker_needs_neither_torch_nor_nixl(role: str) -> None:
    done = run_in_image("", f"import services.{role}.app\n{SIMULATE}")
    assert done.returncode == 0, done.stderr


def test_the_planners_extra_brings_what_its_kubernetes_connector_imports() -> None:
    done = run_in_image("planner", "import armature.connectors.kubernetes\n")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("extra", "module"), [("gateway", "torch"), ("router", "tokenizers"), ("", "nixl_cu12")])
def test_an_image_lacks_what_its_extra_does_not_name(extra: str, module: str) -> None:
    done = run_in_image(extra, f"import {module}\n")
    assert f"{module} is not in the image" in done.stderr
