"""A planner in a live cell, under traffic that changes."""
