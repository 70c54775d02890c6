"""Builds what the Dockerfile builds, without a container engine: `make test-images`.

Carries out the steps of its build stage, word for word, in a folder that stands for the image's root, then starts the
entry point with the image's environment, beside an etcd and a Valkey, and waits until the image's health check is
content. What only an engine can do (base image, user, layers) is not done.
"""

import argparse
import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from armature.runtime.processes import free_port, start_etcd, start_valkey
from tests.support.containers import ROOT, SERVICES, Stage, stages

PREFIX = "/opt/armature"
START_TIMEOUT_S = 180.0


@dataclass(frozen=True)
class Image:
    service: str
    root: Path

    def here(self, text: str) -> str:
        """A step of the image as it is written for this machine."""
        return text.replace(PREFIX, f"{self.root}{PREFIX}")

    def build(self, stage: Stage) -> None:
        folder = self.root
        env = {"SERVICE": self.service, "PATH": f"{_own_python(self.root)}:{os.environ['PATH']}"}
        kept = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "HOME", "SSL_"))}
        for instruction, rest in stage.steps:
            if instruction == "WORKDIR":
                folder = self.root / rest.lstrip("/")
                folder.mkdir()
            elif instruction == "COPY":
                _copy(rest.split(), folder)
            elif instruction == "RUN":
                subprocess.run(["sh", "-c", self.here(rest)], cwd=folder, env=kept | env, check=True)
            else:
                assert instruction == "ARG", f"{instruction} is not known here"

    async def try_out(self, image: Stage, servers: dict[str, str]) -> float:
        """Start it and stop it; seconds until it was healthy."""
        env = {name: self.here(value) for name, value in image.env.items()} | servers
        env |= {"ARMATURE_HOST": "127.0.0.1", "ARMATURE_PORT": str(free_port()), "ARMATURE_METRICS_PORT": "0"}
        env |= {"ARMATURE_HTTP_HOST": "127.0.0.1", "ARMATURE_HTTP_PORT": "0", "ARMATURE_NAMESPACE": self.service}
        path = env["PATH"]
        (command,) = [json.loads(rest) for rest in image.all("ENTRYPOINT")]
        (check,) = [json.loads(rest.partition(" CMD ")[2]) for rest in image.all("HEALTHCHECK")]
        executable = shutil.which(command[0], path=path)
        assert executable is not None, f"{command[0]} is not in the image"
        started_s = time.monotonic()
        process = await asyncio.create_subprocess_exec(executable, cwd="/", env=env, start_new_session=True)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                while await _status([str(shutil.which(check[0], path=path)), *check[1:]], env):
                    assert process.returncode is None, f"{self.service} has ended with {process.returncode}"
            healthy_s = time.monotonic() - started_s
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
        finally:
            if process.returncode is None:
                process.kill()
        return healthy_s


async def _status(command: list[str], env: dict[str, str]) -> int:
    check = await asyncio.create_subprocess_exec(*command, cwd="/", env=env, stderr=asyncio.subprocess.DEVNULL)
    return await check.wait()


def _own_python(root: Path) -> Path:
    """A folder with nothing but the interpreter, as the base image has it: `python`."""
    folder = root / "base"
    folder.mkdir()
    (folder / "python").symlink_to(Path(getattr(sys, "_base_executable", sys.executable)).resolve())
    return folder


def _copy(words: list[str], folder: Path) -> None:
    *sources, target = words
    for source in sources:
        path = ROOT / source
        if path.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(path, folder / target, dirs_exist_ok=True, ignore=ignored)
        else:
            shutil.copy(path, folder / target)


async def main(services: list[str]) -> None:
    build, image = stages()
    with tempfile.TemporaryDirectory(prefix="armature-images-") as name:
        folder = Path(name)
        etcd, valkey = await start_etcd(folder / "etcd"), await start_valkey(folder / "valkey")
        servers = {"ARMATURE_ETCD": etcd.address, "ARMATURE_REDIS": f"redis://{valkey.address}"}
        try:
            for service in services:
                one = Image(service, folder / service)
                one.root.mkdir()
                one.build(build)
                size_bytes = sum(path.stat().st_size for path in one.root.rglob("*") if path.is_file())
                healthy_s = await one.try_out(image, servers)
                print(f"{service}: {size_bytes / 1e6:.0f} MB installed, healthy after {healthy_s:.1f} s", flush=True)
                shutil.rmtree(one.root)
        finally:
            await etcd.stop()
            await valkey.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="tests.images", description="Carry out the Dockerfile's steps.")
    parser.add_argument("service", nargs="*", default=SERVICES, choices=[*SERVICES, []])
    asyncio.run(main(parser.parse_args().service or SERVICES))
