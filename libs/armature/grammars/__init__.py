"""Structured output: what an answer must match, checked at the gateway and followed token by token in an engine."""
