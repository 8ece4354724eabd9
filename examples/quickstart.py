"""Quick start: runs the commands of the jobs on drawn names, one after the other on one Ray."""

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
"""Number of transcripts to print."""


def run(command: str) -> None:
    """Prints a command line and runs it in this process, so that Ray starts only once. Exits as the job does."""
    print(f"\n$ python {command}", flush=True)
    sys.argv = shlex.split(command)
    with redirect_stdout(sys.stdout):  # restores stdout, which a job replaces
        runpy.run_path(str(JOBS / Path(sys.argv[0]).name), run_name="__main__")


def show_transcripts(transcripts: Path, labels: Path) -> None:
    """Prints some transcripts next to the drawn texts."""
    drawn = pd.read_csv(labels, keep_default_na=False).set_index("FILENAME").IDENTITY
    rows = pd.read_parquet(transcripts).dropna(subset="text").head(NUM_SHOWN)
    print(f"\n{'drawn':24}{'read':24}confidence")
    for row in rows.itertuples():
        print(f"{drawn[Path(row.path).name]:24}{row.text:24}{row.confidence:10.0%}")


def show_result(folder: Path, seconds: float) -> None:
    """Prints the scores on the test lines before and after fine-tuning, and the files to open."""
    print(f"\n{'model':24}{'CER':>8}{'exact match':>14}   of {folder}/drawn's test lines")
    for name, evaluation in (("shipped", "before"), ("fine-tuned", "evaluation")):
        metrics = json.loads((folder / evaluation / "metrics.json").read_text())
        print(f"{name:24}{metrics['cer']:8.1%}{metrics['exact_match']:14.1%}   of {metrics['num_lines']}")
    print(f"\nThe quick start took {seconds:.0f} s. Open:")
    for path, description in (
        ("prepared/report.html", "which lines were drawn, kept and rejected"),
        ("evaluation/report.html", "how accurate the new model is, and where it fails"),
        ("transcripts/transcripts-00000.parquet", "its transcripts of the test lines"),
    ):
        print(f"  {folder / path}: {description}")


def commands(folder: str, *, lines: int, epochs: int) -> list[str]:
    """Returns the command lines of the jobs, for a number of drawn lines and of epochs."""
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
    parser.add_argument("--out", type=Path, default=Path("quickstart"), help="new folder for all output")
    parser.add_argument("--lines", type=int, default=1200, help="number of lines to draw")
    parser.add_argument("--epochs", type=int, default=4, help="number of training epochs")
    args = parser.parse_args()
    start = time.monotonic()
    for command in commands(shlex.quote(str(args.out)), lines=args.lines, epochs=args.epochs):
        run(command)
        if "transcripts" in command:
            show_transcripts(Path(sys.argv[-1]), args.out / "drawn/written_name_test_v2.csv")
    show_result(args.out, time.monotonic() - start)


if __name__ == "__main__":
    main()
