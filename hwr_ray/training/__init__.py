"""A distributed training run."""
