"""Trains a recognizer on prepared lines; the same command resumes an interrupted run."""

from hwr_ray.cli import run_named

if __name__ == "__main__":
    run_named("train")
