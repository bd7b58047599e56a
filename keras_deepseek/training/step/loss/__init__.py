"""The loss of a batch, and checks of its labels, reduction and result."""
