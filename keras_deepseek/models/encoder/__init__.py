"""What the families that read a whole sequence at once share: blocks, positions, activations."""
