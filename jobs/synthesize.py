"""Draws a labelled data set of names on school forms, with nothing downloaded."""

from hwr_ray.cli import run_job
from hwr_ray.synthetic.synthesize import SynthesisSettings, synthesize

if __name__ == "__main__":
    run_job(SynthesisSettings, synthesize)
