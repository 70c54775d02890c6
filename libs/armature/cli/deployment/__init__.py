"""`armature plan`: which deployment of a model serves traffic within its targets on the fewest GPUs."""
