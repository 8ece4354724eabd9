"""Handwriting recognition that trains, sweeps and transcribes on Ray."""
