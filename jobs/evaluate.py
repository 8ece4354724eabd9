"""Reads a prepared split with a bundle and measures how well."""

from hwr_ray.cli import run_named

if __name__ == "__main__":
    run_named("evaluate")
