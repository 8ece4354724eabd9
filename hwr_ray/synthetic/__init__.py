"""Rendering of synthetic handwriting."""
