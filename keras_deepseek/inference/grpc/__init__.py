"""The server of gRPC, and what its methods answer."""
