"""Fetches the labelled names of Kaggle's landlord/handwriting-recognition to where jobs/prepare.py reads them."""

from hwr_ray.cli import run_job
from hwr_ray.data.kaggle import FetchSettings, fetch

if __name__ == "__main__":
    run_job(FetchSettings, fetch)
