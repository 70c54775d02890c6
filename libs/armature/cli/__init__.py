"""The `armature` command."""
