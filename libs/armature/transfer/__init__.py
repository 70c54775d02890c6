"""KV blocks between processes: transports, staging leases, and the worker host's two sides."""
