"""The routes from a model to an artifact: in this process, or in one of another backend."""
