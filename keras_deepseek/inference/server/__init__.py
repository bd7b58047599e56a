"""The common parts of the servers of HTTP and gRPC: their threads, TLS, tokens and signals."""
