"""A local web page that recognizes line images and shows texts, confidences and character positions."""

import csv
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hwr_ray.errors import UserError
from hwr_ray.files import storage
from hwr_ray.images.line_warnings import WARNINGS
from hwr_ray.images.lines import encode_png
from hwr_ray.images.reader import MAX_BYTES
from hwr_ray.recognition.bundle_config import SHIPPED_WORD
from hwr_ray.recognition.demo_reader import Details, Reader, Row
from hwr_ray.recognition.recognizer import Recognizer
from hwr_ray.synthetic.forms import draw_line
from hwr_ray.synthetic.synthesize import Names

log = logging.getLogger(__name__)

MOST_FILES = 1000
"""Maximum number of images per upload; `transcribe` has no limit."""


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    model: str = SHIPPED_WORD
    """Path or URI of a bundle, such as RUN/best (jobs/train.py), or `shipped` for the bundle in the package."""
    lexicon: str | None = None
    """File of known names, one per line, as `name` or `name,count`. They become more probable; other texts remain
    possible."""
    precision: float = 0.99
    """Target share of correct texts, 0 to 1, among those that are not marked for review."""
    invert: Literal["auto"] | None = None
    """`auto` inverts images with light writing on a dark background; by default they get a warning only."""
    port: int = 7860
    """Port of the page on this machine's loopback interface; 0 lets Gradio choose one."""

    def __post_init__(self) -> None:
        if not 0 <= self.precision <= 1:
            raise UserError(f"--precision must be between 0 and 1, not {self.precision}")
        if not 0 <= self.port < 65536:
            raise UserError(f"--port must be between 0 and 65535, not {self.port}")


def percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def answer(row: Row) -> str:
    """Returns whether a row needs review, and its warning."""
    review = {None: "unknown: the model has no calibration", True: "yes", False: "no"}[row.needs_review]
    return f"{review}; {WARNINGS[row.warning]}" if row.warning else review


def draw_sample(rng: np.random.Generator) -> tuple[str, bytes]:
    """Returns a name and an image of it as a PNG file."""
    name = Names.draw(int(rng.integers(1 << 16))).draw_one(rng)
    return name, encode_png(draw_line(name, rng))


def to_csv(rows: Sequence[Row], folder: str) -> str:
    """Writes the rows to a new CSV file in the folder and returns its path."""
    with tempfile.NamedTemporaryFile(
        "w", dir=folder, suffix=".csv", delete=False, newline="", encoding="utf-8"
    ) as file:
        writer = csv.DictWriter(file, ["name", "text", "confidence", "needs_review", "warning", "error"])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    return file.name


def ink_of(drawing: dict[str, Any] | None) -> bytes:
    """Returns a drawing as a PNG file, dark on white, cropped to the strokes. Raises UserError if it is empty."""
    composite = None if drawing is None else drawing["composite"]
    if composite is None:
        raise UserError("nothing is drawn yet")
    pixels = np.asarray(composite)
    opacity = pixels[..., 3:].astype(np.float32) / 255 if pixels.shape[-1] == 4 else 1.0
    grey = (pixels[..., :3] * opacity + 255 * (1 - opacity)).mean(-1).astype(np.uint8)
    rows, columns = np.nonzero(grey < 128)
    if not len(rows):
        raise UserError("nothing is drawn yet")
    margin = max(8, (rows.max() - rows.min()) // 4)
    top, left = max(0, rows.min() - margin), max(0, columns.min() - margin)
    return encode_png(np.ascontiguousarray(grey[top : rows.max() + margin, left : columns.max() + margin]))


class Answers:
    """Event handlers of the page. Each returns what the page shows, or raises UserError for a mistake of the user."""

    def __init__(self, settings: DemoSettings, folder: str) -> None:
        lexicon = storage.absolute(settings.lexicon) if settings.lexicon else None
        recognizer = Recognizer(
            settings.model, lexicon=lexicon, precision=settings.precision, invert=True if settings.invert else None
        )
        self.reader, self.folder, self.rng = Reader(recognizer), folder, np.random.default_rng()

    def show(self, files: Sequence[tuple[str, bytes]]) -> list[Any]:
        """Returns the values of `show_one` for the first file, then the table, the CSV file's path and all results."""
        results = self.reader.read(files)
        rows = [row for row, _ in results]
        table = [[r.name, r.text or r.error, percent(r.confidence), answer(r)] for r in rows]
        return [*show_one(*results[0]), table, to_csv(rows, self.folder), results]

    def read_files(self, paths: list[str] | None) -> list[Any]:
        if not paths:
            raise UserError("choose an image first")
        if len(paths) > MOST_FILES:
            raise UserError(f"{len(paths)} images exceed the limit of {MOST_FILES}: use jobs/transcribe.py")
        if large := [path for path in paths if Path(path).stat().st_size > MAX_BYTES]:
            raise UserError(f"{Path(large[0]).name} is larger than {MAX_BYTES >> 20} MiB")
        return self.show([(Path(path).name, Path(path).read_bytes()) for path in paths])

    def read_pasted(self, path: str | None) -> list[Any]:
        return self.read_files([path] if path else None)

    def read_drawing(self, drawing: dict[str, Any] | None) -> list[Any]:
        return self.show([("drawing.png", ink_of(drawing))])

    def read_sample(self) -> list[Any]:
        name, data = draw_sample(self.rng)
        return self.show([(f"{name}.png", data)])


def show_one(row: Row, details: Details) -> list[Any]:
    others = [[text, percent(share)] for text, share in details.alternatives]
    return [row.text or row.error, percent(row.confidence), answer(row), details.picture, others]


def new_page(settings: DemoSettings, folder: str) -> Any:
    """Returns the page as Gradio's Blocks; its files go to the folder. Raises UserError if Gradio is not installed."""
    try:
        import gradio as gr
    except ImportError as error:
        raise UserError("the demo needs the package gradio: pip install 'hwr_ray[demo]'") from error
    answers = Answers(settings, folder)

    def with_errors(handler: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
        """Returns the handler with a UserError shown on the page."""

        @wraps(handler)
        def wrapper(*args: Any) -> list[Any]:
            try:
                return handler(*args)
            except UserError as error:
                raise gr.Error(str(error), print_exception=False) from error

        return wrapper

    def select(results: list[tuple[Row, Details]], event: gr.SelectData) -> list[Any]:
        return show_one(*results[event.index[0]])

    with gr.Blocks(title="hwr_ray", analytics_enabled=False, delete_cache=(60, 600)) as page:
        gr.Markdown(
            "# Handwritten names\nRecognizes uppercase names, one line per image, dark on light. Images stay on the "
            "machine that serves this page and are deleted after about ten minutes."
        )
        with gr.Tab("Images"):
            files = gr.File(label="Drop one or more images", file_count="multiple", type="filepath", height=180)
        with gr.Tab("Paste"):
            pasted = gr.Image(label="Paste an image", sources=["clipboard", "upload"], type="filepath", image_mode=None)
        with gr.Tab("Draw"):
            pad = gr.Sketchpad(
                label="Select the brush and write a name in capital letters",
                type="numpy",
                canvas_size=(640, 200),
                brush=gr.Brush(default_size=5, colors=["#000000"], color_mode="fixed"),
            )
            read_pad = gr.Button("Recognize the drawing")
        with gr.Tab("Sample"):
            sample = gr.Button("Recognize a generated name")
        with gr.Row():
            text = gr.Textbox(label="Text", elem_id="text", interactive=False)
            confidence = gr.Textbox(label="Confidence", elem_id="confidence", interactive=False)
            review = gr.Textbox(label="Needs review", elem_id="review", interactive=False)
        gr.Markdown("Character positions. Boxes are green for high, amber for medium and red for low confidence.")
        picture = gr.Image(label="Frames", show_label=False, interactive=False, format="png", buttons=["fullscreen"])
        others = gr.Dataframe(label="Alternatives", headers=["text", "share"], interactive=False)
        table = gr.Dataframe(
            label="All images: select a row to see its details",
            headers=["image", "text or error", "confidence", "needs review"],
            interactive=False,
            elem_id="table",
        )
        download = gr.DownloadButton("Download as CSV", elem_id="download")
        results, of_one = gr.State([]), [text, confidence, review, picture, others]
        shown = [*of_one, table, download, results]
        # Without show_progress_on, every output would show progress and errors of its own.
        files.upload(with_errors(answers.read_files), files, shown, api_name="read", show_progress_on=text)
        pasted.input(with_errors(answers.read_pasted), pasted, shown, api_name="read_one", show_progress_on=text)
        read_pad.click(with_errors(answers.read_drawing), pad, shown, api_visibility="private", show_progress_on=text)
        sample.click(with_errors(answers.read_sample), None, shown, api_name="sample", show_progress_on=text)
        table.select(select, results, of_one, api_visibility="private")
    return page


def demo(settings: DemoSettings, server_name: str | None = "127.0.0.1") -> None:
    """Serves the page until Ctrl-C. No upload or result stays on disk or in a browser.

    The page listens on loopback by default; a `server_name` of None leaves the address to Gradio's environment
    variables.
    """
    with tempfile.TemporaryDirectory(prefix="hwr-demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        logging.getLogger("httpx").setLevel(logging.WARNING)  # Gradio checks its own server at the start
        page = new_page(settings, folder)
        _, url, _ = page.launch(
            server_name=server_name,
            server_port=settings.port or None,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            max_file_size=MAX_BYTES,
            run_history=False,  # by default a browser keeps the results
        )
        print(url, file=sys.__stdout__, flush=True)
        log.info("press Ctrl-C to stop")
        page.block_thread()
