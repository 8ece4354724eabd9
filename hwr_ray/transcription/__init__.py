"""Images by the million to Parquet."""
