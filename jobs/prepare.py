"""Cleans label CSVs, decodes and fits their images, writes Parquet."""

from hwr_ray.cli import run_job
from hwr_ray.data.prepare import PrepareSettings, prepare

if __name__ == "__main__":
    run_job(PrepareSettings, prepare)
