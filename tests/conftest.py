"""Fixtures that tests of every kind may ask for."""

from hypothesis import settings

pytest_plugins = ("tests.support.etcd",)

# No test asserts a duration, and hypothesis would.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")
