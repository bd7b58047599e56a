"""Checkpoints: write them, resume from them, and hold all the state they need."""
