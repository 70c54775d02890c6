"""Where a request goes. Pure."""
