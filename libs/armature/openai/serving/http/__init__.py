"""The HTTP port: connections and their bounds, one exchange on them, TLS."""
