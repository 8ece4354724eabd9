"""Writes a bundle's network as ONNX or TorchScript, checked against the original on drawn lines."""

from hwr_ray.cli import run_job
from hwr_ray.recognition.export import ExportSettings, export

if __name__ == "__main__":
    run_job(ExportSettings, export)
