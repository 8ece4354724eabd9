"""Generates a synthetic data set of handwritten lines; needs no download."""

from hwr_ray.cli import run_named

if __name__ == "__main__":
    run_named("synthesize")
