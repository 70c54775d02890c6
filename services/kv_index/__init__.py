"""Knows which worker holds which KV block."""
