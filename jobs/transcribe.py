"""Transcribes images to Parquet; the same command resumes an interrupted run."""

from hwr_ray.cli import run_named

if __name__ == "__main__":
    run_named("transcribe")
