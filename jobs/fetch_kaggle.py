"""Downloads Kaggle's data set landlord/handwriting-recognition in the layout that jobs/prepare.py reads."""

from hwr_ray.cli import run_named

if __name__ == "__main__":
    run_named("fetch_kaggle")
