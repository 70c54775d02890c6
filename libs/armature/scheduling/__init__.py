"""What an engine computes next: requests, continuous batching, preemption. Pure."""
