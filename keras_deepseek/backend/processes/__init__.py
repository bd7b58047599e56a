"""Communication between processes that train together: rendezvous, sums, compression."""
