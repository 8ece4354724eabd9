"""How well a bundle reads."""
