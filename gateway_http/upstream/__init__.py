"""The gRPC services behind the gateway: registry, routing, calls."""
