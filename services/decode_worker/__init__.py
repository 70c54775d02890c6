"""Answers requests with tokens; may have prompts computed by a prefill worker."""
