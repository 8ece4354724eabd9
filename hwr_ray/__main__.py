"""Entry point of `python -m hwr_ray JOB`, which does the same as `hwr-ray JOB`."""

from hwr_ray.cli import main

if __name__ == "__main__":
    main()
