"""The worker host: one engine behind the Decode, Prefill and Worker contracts."""
