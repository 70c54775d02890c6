"""Whose requests these are: API keys, tenants, what each may use, and what each has used."""
