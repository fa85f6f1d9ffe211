"""The parts of every call: authorization, deadline, status, metadata and telemetry."""
