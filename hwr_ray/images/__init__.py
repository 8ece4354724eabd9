"""Decoding, fitting and augmentation of line images."""
