"""Policies in files: those that come with the library by name, any other by its path."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from armature.routing.parts import PolicyError

_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True, slots=True)
class PolicyFolder:
    """The policies of one kind that come with the library."""

    folder: Path
    default: str

    def names(self) -> list[str]:
        """Of all policies in the folder, the default one first."""
        names = sorted(path.stem for path in self.folder.glob("*.yaml"))
        return sorted(names, key=lambda name: name != self.default)

    def read(self, name_or_path: str) -> dict[str, Any]:
        """A policy as plain data.

        Raises:
            PolicyError: there is no such policy or file, or it is no mapping; the message says in which line, if that
                can be known.
        """
        path = Path(name_or_path)
        if path.suffix not in _SUFFIXES and len(path.parts) == 1:
            path = self.folder / f"{name_or_path}.yaml"
            if not path.is_file():
                names = ", ".join(self.names())
                raise PolicyError(f"there is no policy {name_or_path!r}; there are {names}, or pass a file NAME.yaml")
        return _mapping_in(path)


def _mapping_in(path: Path) -> dict[str, Any]:
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
