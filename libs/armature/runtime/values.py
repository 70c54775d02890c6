"""How a setting's text or TOML value becomes a value of the declared type.

Known types: str, int, float, bool, Path, Enum, Literal of strings, `tuple[X, ...]` (a comma list or a TOML array) and
`X | None` (empty text is None).
"""

import math
import types
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union


@dataclass(frozen=True, slots=True)
class Kind:
    """A type of setting. `from_text` and `from_toml` raise ValueError for what is not `expected`."""

    expected: str
    """What to write, as it stands after "expected" in an error."""
    from_text: Callable[[str], Any]
    from_toml: Callable[[Any], Any]
    to_text: Callable[[Any], str] = str
    is_switch: bool = False


def kind_of(annotation: Any) -> Kind:
    """The kind of setting that a field's type asks for.

    Raises:
        TypeError: settings of this type are not supported.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    if origin is Literal and all(isinstance(choice, str) for choice in arguments):
        return _choice({choice: choice for choice in arguments})
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return _choice({str(member.value): member for member in annotation})
    if origin is tuple and len(arguments) == 2 and arguments[1] is ...:
        return _list_of(kind_of(arguments[0]))
    if origin in (Union, types.UnionType) and len(arguments) == 2 and arguments[1] is type(None):
        return _optional(kind_of(arguments[0]))
    raise TypeError(f"no setting can have the type {annotation}")


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


_SWITCH = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


def _switch(text: str) -> bool:
    if text.lower() not in _SWITCH:
        raise ValueError(text)
    return _SWITCH[text.lower()]


def _exactly(*accepted: type, then: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """TOML knows types, so a value of another type is a mistake: `true` is no integer, "8" is none either."""

    def check(value: Any) -> Any:
        if type(value) not in accepted:
            raise ValueError(value)
        return then(value)

    return check


def _text(value: str) -> str:
    return value


_PLAIN: dict[Any, Kind] = {
    str: Kind("text", _text, _exactly(str, then=_text)),
    int: Kind("an integer", int, _exactly(int, then=int)),
    float: Kind("a number", _number, _exactly(int, float, then=_number)),
    bool: Kind("true or false", _switch, _exactly(bool, then=bool), lambda on: str(on).lower(), is_switch=True),
    Path: Kind("a path", Path, _exactly(str, then=Path)),
}


def _choice(choices: dict[str, Any]) -> Kind:
    def pick(text: str) -> Any:
        if text not in choices:
            raise ValueError(text)
        return choices[text]

    names = {value: text for text, value in choices.items()}
    return Kind(f"one of {', '.join(choices)}", pick, _exactly(str, then=pick), lambda value: names[value])


def _list_of(item: Kind) -> Kind:
    def split(text: str) -> tuple[Any, ...]:
        return tuple(item.from_text(part.strip()) for part in text.split(",")) if text.strip() else ()

    def convert(values: Iterable[Any]) -> tuple[Any, ...]:
        return tuple(item.from_toml(value) for value in values)

    def join(values: Iterable[Any]) -> str:
        return ",".join(item.to_text(value) for value in values)

    return Kind(f"a comma list, each {item.expected}", split, _exactly(list, then=convert), join)


def _optional(some: Kind) -> Kind:
    def parse(text: str) -> Any:
        return some.from_text(text) if text else None

    def show(value: Any) -> str:
        return "" if value is None else some.to_text(value)

    return Kind(f"{some.expected}, or nothing", parse, some.from_toml, show, some.is_switch)
