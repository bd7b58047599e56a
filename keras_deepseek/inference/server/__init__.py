"""What the servers of HTTP and of gRPC share."""
