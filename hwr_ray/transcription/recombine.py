"""The `recombine` job: composes training lines of new texts from the letters of prepared lines."""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data

from hwr_ray.cluster.connection import check_shared, connect
from hwr_ray.cluster.progress import Progress
from hwr_ray.cluster.resources import WorkerSettings, per_node, preflight, threads_among
from hwr_ray.data.dataset import Prepared, PreparedSets
from hwr_ray.data.label_list import language_model_texts
from hwr_ray.data.prepare import prepare_command
from hwr_ray.errors import UserError
from hwr_ray.files import storage
from hwr_ray.files.staging import staged
from hwr_ray.images.arrow import images_of
from hwr_ray.images.lines import encode_png, squeezed
from hwr_ray.recognition.bundle_config import SHIPPED_WORD, bundle_path, read_config
from hwr_ray.synthetic.splicing import CutWord, Pieces, compose, cut
from hwr_ray.transcription.settings import FEED_CPUS

log = logging.getLogger(__name__)

LABELS, MARK = "train.parquet", "recombine.json"
ROWS_AT_ONCE = 4096
"""Maximum number of lines whose letters are recombined with one another."""
ENOUGH = 0.9
"""Share of --lines below which a warning says that fewer were composed."""
NEW = {"out": "NEW_FOLDER", "delimiter": None, "no_header": False, "encoding": None, "invert": None}
"""Settings of `prepare` that differ from those of the lines that were cut."""
MOST_ATTEMPTS = 20
"""Texts to try for each line to compose. A text fails if no line has one of its letters, or if it is too wide."""
COMPOSED = pa.schema({"image": pa.struct({"bytes": pa.binary(), "path": pa.string()}), "text": pa.string()})
"""Columns of OUT/train.parquet."""


@dataclass(frozen=True, kw_only=True)
class RecombineSettings:
    data: str
    """Prepared data set (output of jobs/prepare.py) whose training lines are cut into letters."""
    out: str
    """Folder or URI for train.parquet, which `prepare --labels OUT/train.parquet --split train` takes."""
    model: str = SHIPPED_WORD
    """Bundle that finds the letters, such as RUN/best, or `shipped`. Only lines that it reads as labelled are used."""
    lines: int = 10_000
    """Number of lines to compose; a little fewer if some texts can't be composed."""
    spaces: float = 0.5
    """Share of the composed lines whose text contains a space, 0 to 1, if there are such texts."""
    label_list: str | None = None
    """CSV file (optionally .gz) of texts to compose; by default the training labels."""
    label_column: str = "IDENTITY"
    """Column of --label-list that contains the texts."""
    seed: int = 0
    """Random seed."""
    num_workers: int = 1
    """Number of processes, each with its own model."""
    workers: WorkerSettings = field(default_factory=WorkerSettings)
    overwrite: bool = False
    """Replace existing composed lines in --out."""

    def __post_init__(self) -> None:
        for name in ("lines", "num_workers"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} must be positive, not {getattr(self, name)}")
        if not 0 <= self.spaces <= 1:
            raise UserError(f"--spaces must be from 0 to 1, not {self.spaces:g}")
        if self.seed < 0:
            raise UserError(f"--seed must not be negative, not {self.seed}")


class Texts:
    """Texts to draw by their counts, a share of them with a space."""

    def __init__(self, counts: Counter[str], spaces: float) -> None:
        with_space = {text: count for text, count in counts.items() if " " in text}
        without = {text: count for text, count in counts.items() if " " not in text}
        self.spaces = spaces if with_space and without else float(bool(with_space))
        self.pools = [(list(pool), np.array(list(accumulate(pool.values())))) for pool in (without, with_space)]

    def draw(self, rng: np.random.Generator) -> str:
        texts, totals = self.pools[rng.random() < self.spaces]
        return texts[int(np.searchsorted(totals, rng.integers(totals[-1]), side="right"))]


class Recombiner:
    """Actor that loads a bundle once, then composes `share` lines for each line of a table, on average."""

    def __init__(self, path: str, texts: Texts, share: float, seed: int, *, device: str, num_workers: int) -> None:
        import torch  # only in workers: the driver does not need it

        from hwr_ray.recognition.bundle import load_bundle
        from hwr_ray.recognition.runtime import Network

        torch.set_num_threads(threads_among(per_node(num_workers)))
        bundle = load_bundle(path)
        self.codec, self.canvas, self.texts, self.share, self.seed = bundle.codec, bundle.canvas, texts, share, seed
        self.network, self.shortcut = (Network(bundle, device=device, shortcut=local) for local in (False, True))

    def __call__(self, table: pa.Table) -> pa.Table:
        """Returns composed lines with the columns COMPOSED. Letters of a line come from images of one size, so that
        they are of one form and stand at the same height."""
        if not len(table):
            return COMPOSED.empty_table()
        first = blake2b(table["id"][0].as_py().encode(), digest_size=8).digest()
        rng = np.random.default_rng((self.seed, int.from_bytes(first, "big")))
        by_size = defaultdict[tuple[int, int], list[CutWord]](list)
        for size, words in self.cut(table):
            by_size[size] += words
        sizes = sorted(by_size)
        weights = np.array([len(by_size[size]) for size in sizes], float)
        pieces = [Pieces(by_size[size]) for size in sizes]
        wanted = int(self.share * len(table) + rng.random())
        rows = list[dict[str, Any]]()
        for _ in range(wanted if sizes else 0):
            for _ in range(MOST_ATTEMPTS):
                text = self.texts.draw(rng)
                found = pieces[rng.choice(len(sizes), p=weights / weights.sum())].cover(text.replace(" ", ""), rng)
                is_copy = found is not None and len(found) == 1 and " " not in text
                image = compose(text, found, rng) if found and not is_copy else None
                if image is not None:
                    rows.append({"image": {"bytes": encode_png(self.file(image)), "path": None}, "text": text})
                    break
        for number, row in enumerate(rows):
            row["image"]["path"] = f"{first.hex()}-{number:06d}.png"
        return pa.Table.from_pylist(rows, schema=COMPOSED)

    def file(self, image: np.ndarray) -> np.ndarray:
        """Returns the image as a file that fits the canvas: `prepare` stretches it again."""
        return squeezed(image, self.canvas.stretch) if self.canvas.stretch != 1 else image

    def cut(self, table: pa.Table) -> Iterator[tuple[tuple[int, int], list[CutWord]]]:
        """Yields the size of the image file, and the words with their cuts, of each line that is read as labelled."""
        from hwr_ray.decoding.ctc import greedy_texts

        images, texts = images_of(table, self.canvas), table["text"].to_pylist()
        is_right = np.array(
            [a == b for a, b in zip(greedy_texts(self.network(images), self.codec), texts, strict=True)]
        )
        if not is_right.any():
            return
        frames = iter(self.shortcut(images[is_right]).cpu().numpy())
        sizes = list(zip(table["height"].to_pylist(), table["width"].to_pylist(), strict=True))
        for n in np.flatnonzero(is_right):
            yield sizes[n], cut(images[n], texts[n], next(frames), self.codec.encode(texts[n]))


def recombine(settings: RecombineSettings) -> str:
    """Writes the composed lines and returns their folder. Raises UserError for errors that the user can fix."""
    prepared, path = Prepared(settings.data), bundle_path(settings.model)
    canvas = read_config(path).canvas
    if prepared.canvas != canvas:
        raise UserError(
            f"{prepared.path} has the canvas {prepared.canvas}, but {path} has {canvas}: pass another --model"
        )
    num_lines = prepared.require_lines("train")
    counts = language_model_texts(PreparedSets((settings.data,)), settings.label_list, settings.label_column)
    with staged(storage.absolute(settings.out), mark=MARK, overwrite=settings.overwrite) as out:
        connect()
        needs = settings.workers.needs(settings.num_workers, other_cpus=FEED_CPUS)
        preflight(needs, wait_minutes=settings.workers.wait_minutes)
        check_shared(prepared.path, path)
        arguments = (path, Texts(counts, settings.spaces), settings.lines / num_lines, settings.seed)
        composed = (
            prepared.read("train")
            .repartition(target_num_rows_per_block=ROWS_AT_ONCE)
            .map_batches(
                Recombiner,
                fn_constructor_args=arguments,
                fn_constructor_kwargs={"device": settings.workers.device, "num_workers": settings.num_workers},
                batch_format="pyarrow",
                batch_size=None,
                compute=ray.data.ActorPoolStrategy(size=settings.num_workers),
                **settings.workers.options,
            )
        )
        number = write(composed, storage.join(out, LABELS), settings.lines)
        if not number:
            raise UserError(
                f"no line of {prepared.path} could be composed: {path} must read some lines as labelled, and the texts "
                "must consist of letters of these lines; pass another --model or --label-list"
            )
        storage.write_json(storage.join(out, MARK), {"settings": asdict(settings), "lines": number})
    log.info("composed %s lines of %s", number, prepared.path)
    if number < ENOUGH * settings.lines:
        log.warning(
            "%s of %s lines were composed: the other texts have other letters or are too long", number, settings.lines
        )
    labels = storage.join(storage.absolute(settings.out), LABELS)
    taken = {"data": None, "labels": labels, "images": None, "split": "train", "columns": None, "overwrite": None}
    log.info("to train on them: %s", prepare_command({**prepared.metadata["settings"], **NEW, **taken}))
    return storage.absolute(settings.out)


def write(composed: ray.data.Dataset, path: str, total: int) -> int:
    """Writes composed lines to a Parquet file as they come, and returns their number."""
    filesystem, inner = storage.locate(path)
    written = 0
    composed.context.enable_progress_bars = False
    composed.context.execution_options.preserve_order = True  # the same lines for the same seed
    with (
        pq.ParquetWriter(inner, COMPOSED, filesystem=filesystem) as writer,
        Progress("lines", lambda: total) as progress,
    ):
        for table in composed.iter_batches(batch_size=None, batch_format="pyarrow"):
            writer.write_table(pa.table(table).cast(COMPOSED))
            written += len(table)
            progress.advance(len(table))
    return written
