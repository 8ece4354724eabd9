"""Bytes by path or URI, whole or not at all."""
