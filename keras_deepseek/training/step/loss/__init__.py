"""The loss of a batch, and the checks around it."""
