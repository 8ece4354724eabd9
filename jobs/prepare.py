"""Cleans label CSVs, decodes and fits their images, writes Parquet."""

from hwr_ray.job import run_job
from hwr_ray.preparation import PrepareSettings, prepare

if __name__ == "__main__":
    run_job(PrepareSettings, prepare)
