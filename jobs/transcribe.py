"""Transcribes every image of a folder to Parquet."""

from hwr_ray.job import run_job
from hwr_ray.transcription import TranscribeSettings, transcribe

if __name__ == "__main__":
    run_job(TranscribeSettings, transcribe)
