"""The protocol: HTTP and gRPC over one data plane."""
