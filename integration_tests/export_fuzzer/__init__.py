"""Random Functional models, exported, and looked at again at shapes that no export has seen."""
