"""Who holds which block. Pure."""
