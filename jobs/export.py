"""Exports a bundle's network as ONNX or TorchScript, checked against the original on synthetic lines."""

from hwr_ray.cli import run_named

if __name__ == "__main__":
    run_named("export")
