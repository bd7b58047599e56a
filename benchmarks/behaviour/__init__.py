"""What servers do when clients, models or the machine misbehave: one file a question."""
