"""Requests that can't be placed now: who waits, in which order, and who is sent away."""
