"""Fixtures that tests of every kind may ask for."""

pytest_plugins = ("tests.support.etcd",)
