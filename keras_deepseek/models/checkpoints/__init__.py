"""Checkpoints in the form of Hugging Face: folders of safetensors files and a config.json.

A family's `checkpoint_map.py` says with `checkpoint_entry` which tensors its variables come from.
"""
