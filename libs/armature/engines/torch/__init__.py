"""The embedded engine's model runner: any dense transformers decoder over our own paged KV cache."""
