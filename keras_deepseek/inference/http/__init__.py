"""The server of HTTP: connections, what the paths answer, and the page at `/`."""
