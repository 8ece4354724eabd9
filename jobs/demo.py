"""Serves a web page that reads line images, on this machine's loopback."""

from hwr_ray.cli import run_job
from hwr_ray.recognition.demo import DemoSettings, demo

if __name__ == "__main__":
    run_job(DemoSettings, demo)
