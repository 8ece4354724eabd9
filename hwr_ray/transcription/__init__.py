"""Batch transcription of images to Parquet."""
