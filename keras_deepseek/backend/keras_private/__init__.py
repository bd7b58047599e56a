"""Private names of Keras, divided by subject. Each has a canary test."""
