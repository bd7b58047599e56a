"""DeepSeek's attention over chosen or compressed tokens."""
