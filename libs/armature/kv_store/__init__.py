"""The bytes of a node's lower tiers: host memory, disk and remote store, moved as `armature.offload` decides."""
