"""Responses that outlive their request: kept for the next turn, made in the background, told again."""
