"""Evaluates a bundle on a prepared split."""

from hwr_ray.cli import run_named

if __name__ == "__main__":
    run_named("evaluate")
