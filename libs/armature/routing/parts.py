"""Builds dataclasses of plain values, as data files have them, and says exactly what is wrong with them."""

import typing
from collections.abc import Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from typing import Any, Literal, TypeVar

T = TypeVar("T")


class PolicyError(ValueError):
    """A policy is wrong; the message says where and what to write instead."""


def parts_of(kinds: Mapping[str, type[T]], given: Any, where: str) -> dict[str, T]:
    """A list of names, each alone or as a mapping of the one name to its options; None is an empty list.

    Raises:
        PolicyError: it is no such list, or a name is unknown or twice in it.
    """
    if given is None:
        return {}
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise PolicyError(f"{where} is {given!r}; it must be a list of names, each with its options if it has any")
    parts: dict[str, T] = {}
    for item in given:
        name, options = (item, None) if isinstance(item, str) else _pair(item, where)
        if name not in kinds:
            raise PolicyError(f"{where}: there is no {name!r}{_hint(name, kinds)}")
        if name in parts:
            raise PolicyError(f"{where}: {name} is there twice")
        parts[name] = part_of(kinds[name], options, f"{where}: {name}")
    return parts


def _pair(item: Any, where: str) -> tuple[str, Any]:
    if not isinstance(item, Mapping) or len(item) != 1:
        raise PolicyError(f"{where}: {item!r} is neither a name nor a name with its options")
    ((name, options),) = item.items()
    return name, options


def part_of(kind: type[T], given: Any, where: str, keys: Sequence[str] | None = None, **more: Any) -> T:
    """An instance of a dataclass with the values of a mapping; None is an empty one.

    Raises:
        PolicyError: a key is unknown, or a value is of the wrong type or out of range.
    """
    values = {} if given is None else given
    at = f"{where}: " if where else ""
    if not isinstance(values, Mapping):
        raise PolicyError(f"{at}{values!r} are no options; write NAME: VALUE")
    types = typing.get_type_hints(kind)
    known = keys or [field.name for field in fields(kind)]  # pyright: ignore[reportArgumentType] -- a dataclass
    for name, value in values.items():
        if name not in known:
            raise PolicyError(f"{at}there is no {name!r}{_hint(str(name), known)}")
        _check_type(value, types[name], f"{at}{name}")
    try:
        return kind(**values, **more)
    except PolicyError:
        raise
    except ValueError as error:
        raise PolicyError(f"{at}{error}") from error


def _check_type(value: Any, wanted: Any, where: str) -> None:
    if typing.get_origin(wanted) is Literal:
        allowed = typing.get_args(wanted)
        if value not in allowed:
            raise PolicyError(f"{where} is {value!r}; it must be one of {', '.join(map(str, allowed))}")
    elif wanted is bool and not isinstance(value, bool):
        raise PolicyError(f"{where} is {value!r}; it must be true or false")
    elif wanted is float and (isinstance(value, bool) or not isinstance(value, (int, float))):
        raise PolicyError(f"{where} is {value!r}; it must be a number")
    elif wanted is int and (isinstance(value, bool) or not isinstance(value, int)):
        raise PolicyError(f"{where} is {value!r}; it must be a whole number")


def _hint(name: Any, known: Any) -> str:
    close = get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(known) or 'no options'}"
