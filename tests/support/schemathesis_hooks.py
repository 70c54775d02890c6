"""What schemathesis is told of a gateway besides its document: a model that it serves, and whose keys it needs."""

import os
from typing import Any

import schemathesis

MODEL, OWN_KEY, OWN_TENANT = (os.environ[f"ARMATURE_TEST_{name}"] for name in ("MODEL", "KEY_ID", "TENANT"))


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """Names of models are right where they are names at all: the rest of the body would not be looked at."""
    if isinstance(body, dict) and isinstance(body.get("model"), str):
        body["model"] = MODEL
    return body


@schemathesis.hook
def before_call(context: Any, case: Any, **options: Any) -> None:
    """The key that the others use stays."""
    parameters = case.path_parameters or {}
    for name, own in (("key_id", OWN_KEY), ("name", OWN_TENANT)):
        if parameters.get(name) == own:
            parameters[name] = "another"
