"""Transcribes every image of a folder to Parquet."""

from hwr_ray.cli import run_job
from hwr_ray.transcription.transcribe import TranscribeSettings, transcribe

if __name__ == "__main__":
    run_job(TranscribeSettings, transcribe)
