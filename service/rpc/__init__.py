"""The gRPC surface: chatrpc.v1 over an `Engine`, health, reflection, errors, drain."""
