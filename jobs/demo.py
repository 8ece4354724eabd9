"""Serves a web page that reads line images, on this machine's loopback."""

from hwr_ray.demo import DemoSettings, demo
from hwr_ray.job import run_job

if __name__ == "__main__":
    run_job(DemoSettings, demo)
