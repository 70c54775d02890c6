"""A simulation's report: one HTML file with its pictures in it, that needs nothing else."""
