"""Fetches the labelled names of Kaggle's landlord/handwriting-recognition to where jobs/prepare.py reads them."""

from hwr_ray.cli import run_named

if __name__ == "__main__":
    run_named("fetch_kaggle")
