"""The quick start: the jobs' own commands, one after the other on one Ray, on drawn names."""

import argparse
import json
import runpy
import shlex
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

import pandas as pd

JOBS = Path(__file__).parents[1] / "jobs"
NUM_SHOWN = 8
"""Transcripts on the console."""


def run(command: str) -> None:
    """Shows a command line and runs it in this process, where Ray is started only once. Ends as the job does."""
    print(f"\n$ python {command}", flush=True)
    sys.argv = shlex.split(command)
    with redirect_stdout(sys.stdout):  # which is put back: a job leaves another
        runpy.run_path(str(JOBS / Path(sys.argv[0]).name), run_name="__main__")


def show_transcripts(transcripts: Path, labels: Path) -> None:
    """Prints some of the texts that were read, beside what was drawn."""
    drawn = pd.read_csv(labels, keep_default_na=False).set_index("FILENAME").IDENTITY
    rows = pd.read_parquet(transcripts).dropna(subset="text").head(NUM_SHOWN)
    print(f"\n{'drawn':24}{'read':24}confidence")
    for row in rows.itertuples():
        print(f"{drawn[Path(row.path).name]:24}{row.text:24}{row.confidence:10.0%}")


def show_result(folder: Path, seconds: float) -> None:
    """Prints how well the test lines were read before and after learning, and what to look at."""
    print(f"\n{'model':24}{'CER':>8}{'exact match':>14}   of {folder}/drawn's test lines")
    for name, evaluation in (("shipped", "before"), ("fine-tuned", "evaluation")):
        metrics = json.loads((folder / evaluation / "metrics.json").read_text())
        print(f"{name:24}{metrics['cer']:8.1%}{metrics['exact_match']:14.1%}   of {metrics['num_lines']}")
    print(f"\nAll of it took {seconds:.0f} s. Open:")
    for path, what in (
        ("prepared/report.html", "what was drawn, kept and set aside"),
        ("evaluation/report.html", "how well the new model reads, and where not"),
        ("transcripts/transcripts-00000.parquet", "what it reads in the test lines"),
    ):
        print(f"  {folder / path}: {what}")


def commands(folder: str, *, lines: int, epochs: int) -> list[str]:
    """The command lines of the jobs, for so many drawn names and epochs."""
    images, data = f"{folder}/drawn/test_v2", f"{folder}/prepared"
    return [
        f"jobs/synthesize.py --out {folder}/drawn --lines {lines}",
        f"jobs/transcribe.py --images {images} --out {folder}/first-transcripts",
        f"jobs/prepare.py --data {folder}/drawn --out {data} --canvas 48 320",
        f"jobs/train.py --data {data} --out {folder}/run --init-from shipped --epochs {epochs} --learning-rate 2e-3 "
        "--batch-size 32",
        f"jobs/evaluate.py --data {data} --split test --model shipped --out {folder}/before",
        f"jobs/evaluate.py --data {data} --split test --model {folder}/run/best --out {folder}/evaluation "
        f"--compare {folder}/before",
        f"jobs/transcribe.py --images {images} --model {folder}/run/best --out {folder}/transcripts",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("quickstart"), help="folder for all that is made, a new one")
    parser.add_argument("--lines", type=int, default=1200, help="names to draw")
    parser.add_argument("--epochs", type=int, default=4, help="passes over them in which the model learns")
    given = parser.parse_args()
    start = time.monotonic()
    for command in commands(shlex.quote(str(given.out)), lines=given.lines, epochs=given.epochs):
        run(command)
        if "transcripts" in command:
            show_transcripts(Path(sys.argv[-1]), given.out / "drawn/written_name_test_v2.csv")
    show_result(given.out, time.monotonic() - start)


if __name__ == "__main__":
    main()
