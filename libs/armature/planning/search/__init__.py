"""Which split of a model over which GPUs, aggregated or disaggregated, serves most within the targets."""
