"""Runs a hyperparameter sweep on prepared lines; the same command resumes an interrupted sweep."""

from hwr_ray.cli import run_named

if __name__ == "__main__":
    run_named("tune")
