"""OpenAI's Responses API: bodies and stored conversations in, `Ask`s out; answers as output items and typed events."""
