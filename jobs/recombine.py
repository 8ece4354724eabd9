"""Composes training lines of new texts from the letters of prepared lines."""

from hwr_ray.cli import run_named

if __name__ == "__main__":
    run_named("recombine")
