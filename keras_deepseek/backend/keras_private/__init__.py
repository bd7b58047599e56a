"""Every private name of Keras that the package uses, each with a canary test."""
