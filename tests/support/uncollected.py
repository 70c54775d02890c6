"""What is freed when it is done with, and what waits for the collector, which a busy process lets wait for long."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_collector() -> Iterator[None]:
    """Nothing that refers to itself is freed inside."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def living(*names: str) -> dict[str, int]:
    """How many objects of classes with these names there are."""
    found = dict.fromkeys(names, 0)
    for each in gc.get_objects():
        name = type(each).__name__
        if name in found:
            found[name] += 1
    return found
