"""`python -m hwr_ray JOB`, as `hwr-ray JOB`."""

from hwr_ray.cli import main

if __name__ == "__main__":
    main()
