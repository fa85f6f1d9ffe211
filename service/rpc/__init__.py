"""The gRPC server: the chatrpc.v1 services, health, reflection, errors and drain."""
