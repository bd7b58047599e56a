"""Checkpoints in the Hugging Face format: folders with a `config.json` and safetensors files.

The `checkpoint_map.py` of a family maps its variables to tensors, with `checkpoint_entry`.
"""
