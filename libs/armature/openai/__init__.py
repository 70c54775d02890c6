"""The OpenAI-compatible surface: requests, answers, errors, text."""
