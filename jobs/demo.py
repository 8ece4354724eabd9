"""Serves a web page that reads line images, on this machine's loopback."""

from hwr_ray.cli import run_named

if __name__ == "__main__":
    run_named("demo")
