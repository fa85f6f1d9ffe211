"""The gRPC services that the gateway calls: registry, routing, channels and calls."""
