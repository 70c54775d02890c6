"""A worker's side of the tiers below its device: what it offers there, and what it reads back."""
