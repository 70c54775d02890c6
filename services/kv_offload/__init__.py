"""Keeps KV blocks of a node's workers in host memory, on disk and in a remote store."""
