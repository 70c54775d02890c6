"""`armature up` with a real etcd and fake services: `fake_cell.py STATE_DIR JOURNAL HTTP_PORT`."""

import sys
from pathlib import Path

from rich.console import Console

from armature.cli.options import CellOptions
from armature.cli.plan import CellPlan, ServicePlan, Surroundings
from armature.cli.up import up
from armature.runtime.errors import StartError

FAKE = str(Path(__file__).with_name("fake_service.py"))


def fake_plan(journal: str) -> object:
    def plan(options: CellOptions, around: Surroundings) -> CellPlan:
        def service(name: str, *flags: str) -> ServicePlan:
            command = (sys.executable, FAKE, "serve", name, *flags)
            return ServicePlan(name, name, command, {"FAKE_JOURNAL": journal})

        return CellPlan(((service("router"),), (service("gateway", f"--http-port={options.http_port}"),)))

    return plan


def main(state_dir: str, journal: str, http_port: str) -> int:
    options = CellOptions(state_dir=Path(state_dir), http_port=int(http_port), valkey=False, drain_timeout_s=5.0)
    try:
        return up(options, Console(), fake_plan(journal))  # type: ignore[arg-type]
    except StartError as error:
        print(f"armature: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
