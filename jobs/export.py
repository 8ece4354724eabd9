"""Writes a bundle's network as ONNX or TorchScript, checked against the original on drawn lines."""

from hwr_ray.export import ExportSettings, export
from hwr_ray.job import run_job

if __name__ == "__main__":
    run_job(ExportSettings, export)
