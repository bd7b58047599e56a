"""Models by name, their versions, and the folders that these come from: from loading to the end."""
