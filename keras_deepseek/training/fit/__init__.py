"""The session around `model.fit`: what a `Trainer` sets up and puts back."""
