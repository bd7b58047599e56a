"""The session around `model.fit`: what a `Trainer` sets up before it and restores after it."""
