"""Preparation of a data set from label files and images."""
