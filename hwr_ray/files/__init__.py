"""Storage by path or URI, with atomic writes."""
