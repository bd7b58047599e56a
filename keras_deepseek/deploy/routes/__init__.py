"""The routes of an export: in this process, or in a process of another backend."""
