"""Characters and how wrong they are."""
