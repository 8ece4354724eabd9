"""Evaluation of a bundle on a prepared data set."""
