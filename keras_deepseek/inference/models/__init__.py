"""Models by name, their versions, and the folders that they are loaded from."""
