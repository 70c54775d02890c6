"""What every service has: settings, server, channels, membership, telemetry, drain, the wire's words in the core's."""
