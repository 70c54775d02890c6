"""How many workers of which role there should be, and why: the planner's decisions, without a clock or a cluster."""
