"""Sweeps over training settings on prepared lines; the same command again goes on."""

from hwr_ray.cli import run_job
from hwr_ray.tuning.tune import TuneSettings, tune

if __name__ == "__main__":
    run_job(TuneSettings, tune)
