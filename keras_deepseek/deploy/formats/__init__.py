"""One file a format. Each is an `ExportFormat`: it writes an artifact and runs it again."""
