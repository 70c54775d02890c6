"""Armature: an operating layer for LLM inference."""
