"""Frames to texts with probabilities."""
