"""DeepSeek's attention over selected or compressed tokens."""
