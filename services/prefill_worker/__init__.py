"""Computes prompts and stages their KV blocks for decode workers."""
