"""Holds a running gateway to its own OpenAPI document, with schemathesis in a process of its own."""

import asyncio
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import yaml

from armature.openai.tenancy.keys import digest_of

ROOT = Path(__file__).parents[2]
KEY = "arm-a key for tests that opens all but administration"
TENANT = "acme"
ADMIN_KEY = "an admin key for tests that nobody guesses"
# Not that valid data is accepted: what fields mean together, and what a model can do, is in no schema.
LEFT_OUT = "positive_data_acceptance"


def key_book() -> str:
    """A key file that has this key, as YAML."""
    return yaml.safe_dump({"keys": {KEY[:12]: {"tenant": TENANT, "digest": digest_of(KEY)}}})


@dataclass(frozen=True, slots=True)
class Report:
    is_conform: bool
    text: str


async def conformity(url: str, model: str, *, phases: str, examples: int, seed: int, timeout_s: float) -> Report:
    """Send what the document at `url` allows and what it forbids, and look at every answer.

    The gateway knows the key of `key_book` and the admin key, and serves the model.
    """
    auth = "".join(
        f'[auth.openapi.{name}]\nbearer = "{key}"\n' for name, key in (("api_key", KEY), ("admin_key", ADMIN_KEY))
    )
    told = {"MODEL": model, "KEY_ID": KEY[:12], "TENANT": TENANT}
    env = {
        **os.environ,
        **{f"ARMATURE_TEST_{name}": value for name, value in told.items()},
        "SCHEMATHESIS_HOOKS": "tests.support.schemathesis_hooks",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]]),
    }
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "schemathesis.toml"
        config.write_text(auth)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "run", f"{url}/openapi.json",
            "--phases", phases, "--max-examples", str(examples), "--seed", str(seed), "--no-color",
            "--exclude-checks", LEFT_OUT, "--continue-on-failure", "--request-timeout", "30", "--warnings", "off",
            cwd=folder, env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            async with asyncio.timeout(timeout_s):
                output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    return Report(process.returncode == 0, output.decode())
