"""Sparse attention layers of DeepSeek, whose queries see selected or compressed keys."""
