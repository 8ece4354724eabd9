"""Cleans labels, fits their images to the canvas and writes both as Parquet."""

from hwr_ray.cli import run_named

if __name__ == "__main__":
    run_named("prepare")
