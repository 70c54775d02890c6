"""What a planner acts through: connectors that start, stop and turn workers, each where workers run in another way."""
