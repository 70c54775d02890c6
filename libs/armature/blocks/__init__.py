"""KV blocks: their identity and the pool that owns them. Pure."""
