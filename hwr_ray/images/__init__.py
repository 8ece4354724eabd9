"""Bytes of an image file to pixels on a canvas."""
