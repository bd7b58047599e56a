"""Export formats, one file each. An `ExportFormat` writes an artifact and runs it."""
