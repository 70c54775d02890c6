"""Tests of the `armature` command."""
