"""Decides where requests go."""
