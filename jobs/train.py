"""Trains a recognizer on prepared lines; the same command again resumes the run."""

from hwr_ray.cli import run_job
from hwr_ray.training.settings import TrainSettings
from hwr_ray.training.train import train

if __name__ == "__main__":
    run_job(TrainSettings, train)
