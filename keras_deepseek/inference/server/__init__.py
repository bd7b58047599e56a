"""The common parts of the servers: their threads, TLS, tokens, signals, metrics and live line."""
