"""Serves a web page that transcribes line images, on this machine's loopback interface."""

from hwr_ray.cli import run_named

if __name__ == "__main__":
    run_named("demo")
