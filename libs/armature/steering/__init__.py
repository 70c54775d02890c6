"""What stands around a planner in a live cell: what it sees, keeps and tells. It decides by `armature.planning`."""
