"""Finds placement policies: those that come with the library by name, any other by its file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

import armature.routing
from armature.routing.parts import PolicyError
from armature.routing.policy import Policy, policy_of

DEFAULT_POLICY = "seconds"

_SHIPPED = Path(armature.routing.__file__).parent / "policies"
_SUFFIXES = (".yaml", ".yml")


def shipped_policies() -> list[str]:
    """Names of the policies that come with the library, the default one first."""
    names = sorted(path.stem for path in _SHIPPED.glob("*.yaml"))
    return sorted(names, key=lambda name: name != DEFAULT_POLICY)


def load_policy(name_or_path: str) -> Policy:
    """The policy of that name, or in that file.

    Raises:
        PolicyError: there is none, or it is wrong; the message says what and, if it can be known, in which line.
    """
    return policy_of(read_policy(name_or_path), Path(name_or_path).stem)


def read_policy(name_or_path: str) -> dict[str, Any]:
    """The policy as plain data.

    Raises:
        PolicyError: there is no such policy or file, or it is no mapping.
    """
    path = Path(name_or_path)
    if path.suffix not in _SUFFIXES and len(path.parts) == 1:
        path = _SHIPPED / f"{name_or_path}.yaml"
        if not path.is_file():
            names = ", ".join(shipped_policies())
            raise PolicyError(f"there is no policy {name_or_path!r}; there are {names}, or pass a file NAME.yaml")
    try:
        given: object = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyError(f"{path} can't be read: {error}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise PolicyError(f"{path}: {line}{error.problem}") from error
    except yaml.YAMLError as error:
        raise PolicyError(f"{path}: {error}") from error
    if given is None:
        given = {}
    if not isinstance(given, Mapping) or not all(isinstance(key, str) for key in given):
        raise PolicyError(f"{path}: a policy is a mapping, such as `picker: random`")
    return dict(given)
