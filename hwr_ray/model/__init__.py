"""The recognition network."""
