"""Sweeps over training settings on prepared lines; the same command again goes on."""

from hwr_ray.cli import run_named

if __name__ == "__main__":
    run_named("tune")
