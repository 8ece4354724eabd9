"""Draws a labelled data set of names on school forms, with nothing downloaded."""

from hwr_ray.job import run_job
from hwr_ray.synthesis import SynthesisSettings, synthesize

if __name__ == "__main__":
    run_job(SynthesisSettings, synthesize)
