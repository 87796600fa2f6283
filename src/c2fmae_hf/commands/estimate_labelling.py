"""`--estimate` of labelling: some images are labelled by the job's own labeller, and the whole is computed."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..labelling.job import LabellingSummary, label_images
from ..labelling.labellers.base import Labeller
from ..labelling.records import LabelMaps, OutputOptions, PreparedImage, SourceRecord, build_row, prepare_image
from ..labelling.sources.base import ImageSource, Part
from ..training.log_lines import counted, readable_time
from . import estimate
from .estimate import memory_in_words, num_cores, peak_memory, rate_in_words, readable_bytes


#: The most images that are labelled, and those that a labeller is fitted to.
MOST_IMAGES, IMAGES_TO_FIT = 256, 32
#: Images that are decoded and encoded once more, in one thread.
_FEW = 8


class SampleSource(ImageSource):
    """A sample of a source, which ends when enough is measured. `records` and `times_to_fit` tell what was read."""

    def __init__(self, source: ImageSource, fewest: int) -> None:
        super().__init__()
        self.source, self.fewest = source, fewest
        self.label_feature = source.label_feature
        self.records: list[SourceRecord] = []
        self.times_to_fit: list[float] = []

    def fingerprint(self) -> dict[str, Any]:
        return {}

    def parts(self, records_per_part: int) -> Sequence[Part]:
        return [Part(0, None, None)]

    def read(self, part: Part, skip: int = 0) -> Iterator[SourceRecord]:
        begin = time.perf_counter()
        for record in itertools.islice(self.source.sample(1000), MOST_IMAGES):
            if len(self.records) >= self.fewest and time.perf_counter() - begin >= estimate.SECONDS:
                return
            self.records.append(record)
            yield record

    def sample(self, records_per_part: int) -> Iterator[SourceRecord]:
        for record in itertools.islice(self.source.sample(records_per_part), IMAGES_TO_FIT):
            self.times_to_fit.append(time.perf_counter())
            yield record


class TimedLabeller:
    """A labeller whose calls are timed: begin, end and number of images of each, and some of its results."""

    def __init__(self, labeller: Labeller) -> None:
        self.labeller = labeller
        self.calls: list[tuple[float, float, int]] = []
        self.results: list[tuple[PreparedImage, LabelMaps]] = []
        self.seconds_to_fit = self.seconds_to_start = 0.0

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked of a copy that has no labeller yet
            raise AttributeError(name)
        return getattr(self.labeller, name)

    def prepare(self, images: Iterator, folder: Path) -> None:
        begin = time.perf_counter()
        self.labeller.prepare(images, folder)
        self.seconds_to_fit += time.perf_counter() - begin

    def start(self, worker: int = 0) -> None:
        begin = time.perf_counter()
        self.labeller.start(worker)
        self.calls.append((begin, time.perf_counter(), 0))

    def __call__(self, batch: Sequence[PreparedImage]) -> list[LabelMaps]:
        begin = time.perf_counter()
        maps = self.labeller(batch)
        self.calls.append((begin, time.perf_counter(), len(batch)))
        if len(self.results) < _FEW:
            self.results += zip(batch, maps)
        return maps


@dataclass
class LabellingEstimate:
    """
    Time, memory and storage of a labelling job. Times are in seconds, sizes in bytes. If the source does not know its
    number of images, totals are those of the images measured.
    """

    images: int | None
    """In the source, if it knows."""
    measured: int
    """Images that were labelled, rejects included."""
    rejects: int
    batch_size: int
    num_workers: int
    num_threads: int
    labelling: float
    """Per image, by the labeller."""
    together: float
    """Per image, with decoding, encoding and writing beside the labeller."""
    decoding: float
    """Per image, in one thread."""
    encoding: float
    fitting: float
    """In the whole job."""
    starting: float
    image_bytes: float
    """Per row."""
    map_bytes: float
    devices: int
    device: torch.device
    memory: int | None

    @property
    def seconds(self) -> float:
        return self.seconds_with(self.num_workers)

    def seconds_with(self, workers: int) -> float:
        """Time of the job with so many workers, all as fast as the one measured."""
        return self.fitting + self.starting + (self.images or self.measured) * self.together / workers

    @property
    def rows(self) -> int:
        return self.measured - self.rejects

    @property
    def scale(self) -> float:
        """Images of the source for each one measured."""
        return (self.images or self.measured) / self.measured

    @property
    def bytes(self) -> float:
        return self.scale * self.rows * (self.image_bytes + self.map_bytes)

    @property
    def waiting_share(self) -> float:
        return max(1 - self.labelling / self.together, 0)

    def lines(self) -> list[str]:
        """The estimate in words."""
        ms_decoding, ms_encoding = 1e3 * self.decoding, 1e3 * self.encoding
        waiting = f"the labeller waits {self.waiting_share:.0%} of the time"
        needed = math.ceil((self.decoding + self.encoding) / self.labelling)
        if self.waiting_share >= 0.05 and self.num_threads < needed <= num_cores():
            waiting += f"; --num_threads {needed} would keep up"
        lines = [
            f"labeller: {rate_in_words(1, self.labelling)} in batches of {self.batch_size}",
            f"decoding {ms_decoding:.1f} ms, encoding {ms_encoding:.1f} ms an image, in {self.num_threads} threads",
            f"together: {rate_in_words(1, self.together)}; {waiting}",
        ]
        if self.images is None:
            million = readable_time(1e6 * self.together / self.num_workers)
            lines.append(f"time: {million} for a million images with {counted(self.num_workers, 'worker')}")
        else:
            workers = f" with {self.num_workers} workers as fast as this one" if self.num_workers > 1 else ""
            once = f", {readable_time(self.fitting + self.starting)} of it to begin"
            lines.append(f"time: {readable_time(self.seconds)} for {self.images} images{workers}{once}")
            if self.devices != self.num_workers:
                kind = "device" if self.device.type != "cpu" else "core"
                lines.append(
                    f"{counted(self.devices, 'worker')}, each with a {kind} like this one: "
                    f"{readable_time(self.seconds_with(self.devices))}"
                )
        per_row = f"{readable_bytes(self.image_bytes)} an image and {readable_bytes(self.map_bytes)} its maps"
        total = "" if self.images is None else f"{readable_bytes(self.bytes)}: "
        lines.append(f"dataset: {total}{per_row}; {self.rejects} of {self.measured} images rejected")
        return lines

    def memory_line(self) -> str:
        return memory_in_words(self.device, self.memory) + (" and each worker" if self.num_workers > 1 else "")


def estimate_labelling(
    source: ImageSource,
    labeller: Labeller,
    folder: Path,
    devices: int,
    options: OutputOptions | None = None,
    num_workers: int = 1,
    num_threads: int = 2,
    max_reject_share: float = 0.5,
) -> LabellingEstimate:
    """
    Label a sample of a source in this process, and measure it.

    Args:
        source, labeller, options, num_workers, num_threads, max_reject_share: As for [`label_images`].
        folder: Where to write the labelled sample.
        devices (`int`): A number of workers to compute the time for.

    Raises:
        `ValueError`: if no image of the sample can be labelled.
    """
    options = options or OutputOptions()
    number = source.num_records(options.rows_per_shard)
    sample, timed = SampleSource(source, 4 * labeller.batch_size), TimedLabeller(labeller)
    summary: LabellingSummary = label_images(
        sample, timed, folder, options=options, num_threads=num_threads, max_reject_share=max_reject_share
    )
    if summary.rows == 0:
        raise ValueError(
            f"source: expected images, but none of the {summary.records} tried can be labelled; label them without "
            "--estimate, and rejects.jsonl says why"
        )
    # Calls are followed by the preparation of the next batch; the first ones warm up.
    (begin, started, _), *calls = timed.calls
    counts = calls[1:] if len(calls) > 1 else calls
    since = calls[0][1] if len(calls) > 1 else started
    images = sum(size for _, _, size in counts)
    clock = time.perf_counter()
    for record in sample.records[:_FEW]:
        prepare_image(record, options)
    decoded = time.perf_counter()
    for prepared, maps in timed.results[:_FEW]:
        build_row(prepared, maps, len(labeller.id2label), options)
    encoded = time.perf_counter()
    # A labeller that took all it was given would take more from the source.
    fitting, times = timed.seconds_to_fit, sample.times_to_fit
    if len(times) == IMAGES_TO_FIT:
        wanted = min(getattr(labeller, "fit_images", 0), number or math.inf)
        fitting += max(wanted - len(times), 0) * (times[-1] - times[0]) / (len(times) - 1)
    is_on_gpu = torch.cuda.is_available() and torch.cuda.max_memory_allocated() > 0
    device = torch.device("cuda", torch.cuda.current_device()) if is_on_gpu else torch.device("cpu")
    return LabellingEstimate(
        images=number,
        measured=summary.records,
        rejects=summary.rejects,
        batch_size=labeller.batch_size,
        num_workers=num_workers,
        num_threads=num_threads,
        labelling=sum(end - start for start, end, _ in counts) / images,
        together=(counts[-1][1] - since) / images,
        decoding=(decoded - clock) / len(sample.records[:_FEW]),
        encoding=(encoded - decoded) / len(timed.results[:_FEW]),
        fitting=fitting,
        starting=started - begin,
        image_bytes=summary.image_bytes / summary.rows,
        map_bytes=summary.map_bytes / summary.rows,
        devices=devices,
        device=device,
        memory=peak_memory(device),
    )
