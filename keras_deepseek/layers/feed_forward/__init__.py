"""Feed-forward layers, which transform each position by itself."""
