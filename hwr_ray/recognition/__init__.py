"""A bundle that reads."""
