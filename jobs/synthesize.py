"""Draws a labelled data set of names on school forms, without any download."""

from hwr_ray.cli import run_named

if __name__ == "__main__":
    run_named("synthesize")
