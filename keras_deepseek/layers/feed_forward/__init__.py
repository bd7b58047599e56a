"""Feed-forward layers, which transform each position of a sequence independently."""
