"""Which KV blocks lie in which lower tier, and why: the deciding part of kv-offload, without I/O or clock."""
