"""What every part of a policy is held to: numbers that are finite and not negative."""

import math
from dataclasses import fields
from typing import Any


def check_numbers(part: Any, above_zero: tuple[str, ...] = ()) -> None:
    """Refuse a dataclass with a number that nothing can be reckoned with.

    Raises:
        ValueError: a number is negative, infinite, NaN, or 0 though it is in `above_zero`.
    """
    for field in fields(part):
        value = getattr(part, field.name)
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            continue
        if not 0 <= value < math.inf:
            raise ValueError(f"{field.name} is {value}; it must be a finite number of at least 0")
        if value == 0 and field.name in above_zero:
            raise ValueError(f"{field.name} is 0; it must be above 0")
