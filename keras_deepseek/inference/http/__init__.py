"""The HTTP server: connections, routes, and the page at `/`."""
