"""The Dockerfile: a small image of one service that runs as nobody. `make test-images` carries out its steps."""

import json
import re

from armature.runtime import probe
from tests.support.containers import ROOT, SERVICES, known_variables, settings_class, stages


def test_an_image_takes_the_build_and_nothing_else_along() -> None:
    build, image = stages()
    assert image.all("COPY") == ["--from=build /opt/armature /opt/armature"]
    assert build.all("ARG")[0] == image.all("ARG")[0] == "SERVICE"
    assert all(set(re.findall(r"\.\[(.*?)\]", step)) <= {"${SERVICE}", "vllm"} for step in build.all("RUN"))


def test_what_the_build_copies_is_not_ignored() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {name for step in stages()[0].all("COPY") for name in step.split()[:-1]}
    assert copied == kept
    assert all((ROOT / name).exists() for name in copied)


def test_it_runs_as_a_user_without_rights() -> None:
    assert stages()[-1].all("USER") == ["10001:10001"]


def test_its_health_check_is_the_probe() -> None:
    (check,) = stages()[-1].all("HEALTHCHECK")
    assert json.loads(check.partition(" CMD ")[2]) == ["python", "-m", probe.__name__]


def test_its_environment_is_one_that_services_read() -> None:
    image = stages()[-1]
    given = {name for name in image.env if name.startswith("ARMATURE_")}
    assert given <= set().union(*map(known_variables, SERVICES))
    exposed = {int(port) for port in image.all("EXPOSE")[0].split()}
    assert exposed == {int(image.env[f"ARMATURE_{name}"]) for name in ("PORT", "METRICS_PORT")}


def test_every_service_has_an_extra_and_settings() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    for service in SERVICES:
        assert settings_class(service)
        assert re.search(rf"^{service} = \[", text, re.MULTILINE)
