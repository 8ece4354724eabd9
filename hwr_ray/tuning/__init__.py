"""A hyperparameter sweep."""
