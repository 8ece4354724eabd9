"""Inference with a model bundle, its export and the demo."""
