"""The common parts of the servers: threads, TLS, tokens, signals, metrics and the admin port."""
