"""Anthropic's Messages API: bodies in, `Ask`s out; answers as content blocks and typed events."""
