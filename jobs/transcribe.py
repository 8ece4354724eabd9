"""Transcribes every image of a folder to Parquet."""

from hwr_ray.cli import run_named

if __name__ == "__main__":
    run_named("transcribe")
