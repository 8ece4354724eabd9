"""Reads a prepared split with a bundle and measures how well."""

from hwr_ray.cli import run_job
from hwr_ray.evaluation.evaluate import EvaluateSettings, evaluate

if __name__ == "__main__":
    run_job(EvaluateSettings, evaluate)
