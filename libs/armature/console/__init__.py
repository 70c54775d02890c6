"""The operator console: a live picture of the cell and of what was decided, for whoever administers a gateway."""
