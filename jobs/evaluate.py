"""Reads a prepared split with a bundle and measures how well."""

from hwr_ray.evaluation import EvaluateSettings, evaluate
from hwr_ray.job import run_job

if __name__ == "__main__":
    run_job(EvaluateSettings, evaluate)
