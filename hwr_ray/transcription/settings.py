"""The settings of a transcription, and those of reading lines with a bundle, which an evaluation shares."""

import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import ray

from hwr_ray.cluster.resources import Needs, WorkerSettings, per_node, preflight, threads_among
from hwr_ray.decoding.decoder import NUM_CANDIDATES, lexicon_for
from hwr_ray.errors import UserError
from hwr_ray.files import storage
from hwr_ray.recognition import bundle_config
from hwr_ray.recognition.bundle_config import SHIPPED_WORD, BundleConfig
from hwr_ray.transcription.inputs import InputSettings

if TYPE_CHECKING:
    from hwr_ray.recognition.recognizer import Recognizer

log = logging.getLogger(__name__)

WORKER_CPUS = 0.45
"""Default number of Ray's logical CPUs per model. A node full of models keeps some for the tasks that feed them."""
FEED_CPUS = 1
"""Logical CPUs reserved for the tasks that feed the models. Ray Data takes a whole one to list Parquet files."""


@dataclass(frozen=True, kw_only=True)
class ReadingSettings:
    num_workers: int | None = None
    """Number of processes, each with its own model; by default one per CPU, or with --use-gpu one per GPU."""
    workers: WorkerSettings = field(default_factory=lambda: WorkerSettings(cpus_per_worker=WORKER_CPUS))
    batch_size: int = 64
    """Number of lines that a model recognizes at a time."""
    greedy: bool = False
    """Decode without the bundle's language model: faster, but less accurate."""
    lexicon: str | None = None
    """File of known names, one per line, as `name` or `name,count`. They become more probable; other texts remain
    possible."""
    num_best: int = 1
    """Number of candidates per line, at most 8: the recognized text and --num-best minus 1 `alternatives`."""
    characters: bool = False
    """Add the column `characters`: the confidence and position of each character of a text."""
    voters: tuple[str, ...] = ()
    """More bundles that recognize each line and vote with --model, which has the language model and calibration."""
    test_time_augmentation: bool = False
    """Recognize each line also 8 % smaller and 8 % larger and let these readings vote: more accurate, three times the
    work."""

    def __post_init__(self) -> None:
        for name in ("num_workers", "batch_size", "num_best"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise UserError(f"--{name.replace('_', '-')} must be positive, not {value}")
        if self.greedy and (self.lexicon or self.num_best > 1):
            raise UserError("--greedy returns one candidate and ignores names: omit --lexicon and --num-best")
        if self.greedy and (self.voters or self.test_time_augmentation):
            raise UserError("--greedy has one reading: omit --voters and --test-time-augmentation")
        if self.num_best > NUM_CANDIDATES:
            raise UserError(f"--num-best must be at most {NUM_CANDIDATES}, not {self.num_best}")

    def recognizer(self, bundle_path: str) -> "Recognizer":
        """Returns a recognizer of the bundle, limited to this worker's share of its node's threads.

        Raises UserError if the bundle can't be loaded with these settings.
        """
        import torch  # only in workers: the driver does not need it

        from hwr_ray.recognition.recognizer import Recognizer

        torch.set_num_threads(threads_among(per_node(self.num_workers or 1)))
        device = self.workers.device
        return Recognizer(
            bundle_path,
            device=device,
            batch_size=self.batch_size,
            greedy=self.greedy,
            lexicon=self.lexicon,
            voters=self.voters,
            test_time_augmentation=self.test_time_augmentation,
        )

    def for_workers(self, bundle_path: str, config: BundleConfig) -> "ReadingSettings":
        """Returns these settings with absolute paths, for processes with another working directory.

        Raises UserError if they do not suit the bundle.
        """
        settings = replace(
            self,
            lexicon=storage.absolute(self.lexicon) if self.lexicon else None,
            voters=tuple(bundle_config.bundle_path(voter) for voter in self.voters),
        )
        bundle_config.check_voters(config, settings.voter_configs())
        is_greedy = self.greedy or config.decoding.language_model is None
        if is_greedy and (self.voters or self.test_time_augmentation):
            raise UserError(
                f"{bundle_path} has no language model, without which readings can't vote: omit --voters and "
                "--test-time-augmentation"
            )
        if is_greedy and self.num_best > 1:
            raise UserError(f"{bundle_path} has no language model and returns one candidate: omit --num-best")
        lexicon_for(bundle_path, settings.lexicon, config.codec, is_greedy=is_greedy)
        if settings.votes() != config.training.get("recalibration", {}).get("votes", []):
            log.warning(
                "the confidences of %s are calibrated for other votes: calibrate it with evaluate --recalibrate",
                bundle_path,
            )
        return settings

    def voter_configs(self) -> dict[str, BundleConfig]:
        """Returns the configurations of the voters by path. Raises UserError if one is not a bundle."""
        return {voter: bundle_config.read_config(voter) for voter in self.voters}

    def votes(self) -> list[str]:
        """Returns what votes beside the bundle, as `votes_of` does."""
        return bundle_config.votes_of(self.voter_configs().values(), test_time_augmentation=self.test_time_augmentation)

    def model_id(self, config: BundleConfig) -> str:
        """Returns the id of a bundle with what votes beside it, joined by `+`."""
        return "+".join([config.model_id, *self.votes()])

    def admitted(self, feed_cpus: float = FEED_CPUS) -> "ReadingSettings":
        """Returns these settings with `num_workers` set, by default to what the cluster holds beside `feed_cpus`.

        Raises UserError if the cluster can't hold that many workers, or not even one.
        """
        preflight(self.needs(feed_cpus), wait_minutes=self.workers.wait_minutes)
        if self.num_workers:
            return self
        cluster = ray.cluster_resources()
        cpus = cluster["CPU"]
        fitting = min(cpus, (cpus - feed_cpus) / self.workers.cpus_per_worker)
        sized = replace(self, num_workers=max(1, int(cluster["GPU"] if self.workers.use_gpu else fitting)))
        preflight(sized.needs(feed_cpus))
        return sized

    def needs(self, feed_cpus: float = FEED_CPUS) -> Needs:
        """Returns the resources of the workers, or of one if their number is not set, and `feed_cpus`."""
        return self.workers.needs(self.num_workers or 1, other_cpus=feed_cpus)


@dataclass(frozen=True, kw_only=True)
class TranscribeSettings:
    inputs: InputSettings
    model: str = SHIPPED_WORD
    """Path or URI of a bundle, such as RUN/best (jobs/train.py), or `shipped` for the bundle in the package."""
    out: str
    """Folder or URI for *.parquet and _run.json. Repeating the same command resumes the job and adds new images."""
    precision: float = 0.99
    """Target share of correct texts, 0 to 1, among those that are not marked for review."""
    max_error_rate: float = 1.0
    """Stop if more than this share of images (0 to 1) can't be read; checked from 1,000 images on and at the end."""
    reading: ReadingSettings = field(default_factory=ReadingSettings)
    overwrite: bool = False
    """Delete existing transcripts and start over instead of resuming the job."""

    def __post_init__(self) -> None:
        for name in ("precision", "max_error_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"--{name.replace('_', '-')} must be between 0 and 1, not {getattr(self, name)}")
