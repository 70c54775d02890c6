"""vLLM as an engine of a worker: its scheduler, its block pool and its attention under our contracts."""
