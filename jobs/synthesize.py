"""Draws a labelled data set of names on school forms, with nothing downloaded."""

from hwr_ray.cli import run_named

if __name__ == "__main__":
    run_named("synthesize")
