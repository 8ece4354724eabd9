"""Cleans label CSVs, fits their images to the canvas and writes Parquet."""

from hwr_ray.cli import run_named

if __name__ == "__main__":
    run_named("prepare")
