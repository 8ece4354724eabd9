"""Decoding of the network's output into texts with probabilities."""
