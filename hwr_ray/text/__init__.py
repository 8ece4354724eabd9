"""Text codec and error metrics."""
