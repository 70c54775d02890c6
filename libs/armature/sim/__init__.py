"""A cell in simulated time, driven by the cores that the services run. Pure."""
