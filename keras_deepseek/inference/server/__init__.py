"""What the servers of HTTP and gRPC share: their threads, TLS, tokens and signals."""
