"""Cleans label CSVs, decodes and fits their images, writes Parquet."""

from hwr_ray.cli import run_named

if __name__ == "__main__":
    run_named("prepare")
