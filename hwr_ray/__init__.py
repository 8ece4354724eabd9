"""Handwriting recognition that trains and transcribes on Ray."""
