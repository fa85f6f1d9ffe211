"""The life of one call: authorization, deadline, status, metadata, telemetry."""
