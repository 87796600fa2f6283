"""Labelling of a source shard by shard, in this process or in several on this machine."""

from __future__ import annotations

import collections
import copy
import itertools
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import datasets

from .contents import load_record
from .labellers.base import Labeller
from .records import LabelMaps, OutputOptions, PreparedImage, Reject, SourceRecord, build_row, prepare_image
from .shards import ShardInfo, ShardStore
from .sources.base import ImageSource, Part


Item = TypeVar("Item")
Result = TypeVar("Result")

# A smaller shard may fail as a whole without stopping the job.
_FEW_IMAGES = 32


@dataclass
class LabellingTask:
    """Everything a process needs to label parts. Can be pickled."""

    source: ImageSource
    labeller: Labeller
    store: ShardStore
    features: datasets.Features
    options: OutputOptions
    num_threads: int = 2
    max_reject_share: float = 0.5

    def run_part(self, part: Part, report: Callable[[int], None] = lambda number: None) -> Iterator[ShardInfo]:
        """
        Label the unfinished shards of a part.

        Args:
            part: A part of the source.
            report: Called with the number of images just finished.

        Yields:
            Shards as they are written.

        Raises:
            `RuntimeError`: if more than `max_reject_share` of a shard's images fail.
        """
        chunk, size = 0, self.options.rows_per_shard
        while (finished := self.store.find(part.index, chunk)) is not None:
            if finished.is_last:
                return
            chunk += 1
        records = self.source.read(part, skip=chunk * size)
        following = next(records, None)
        with ThreadPoolExecutor(self.num_threads, thread_name_prefix="decode") as pool:
            while following is not None or chunk == 0:
                first = [] if following is None else [following]
                info = ShardInfo(self.store.shard_name(part.index, chunk), part.index, chunk)
                with self.store.write(info, self.features) as writer:
                    chosen = itertools.chain(first, itertools.islice(records, size - 1))
                    for row in self._label(chosen, pool, info.contents):
                        writer.add(row)
                        report(1)
                    following = next(records, None)
                    info.is_last = following is None
                    self._check_rejects(info)
                yield info
                chunk += 1

    def load(self, record: SourceRecord) -> tuple[SourceRecord, str]:
        """A record with its image in memory, and a checksum of everything that its row depends on."""
        try:
            files = self.labeller.files(record)
        except ValueError:  # the labeller raises it again
            files = []
        return load_record(record, files)

    def _prepare(self, record: SourceRecord) -> tuple[PreparedImage | Reject, str]:
        record, checksum = self.load(record)
        return prepare_image(record, self.options), checksum

    def _label(
        self, records: Iterable[SourceRecord], pool: Executor, contents: list[str]
    ) -> Iterator[dict[str, Any] | Reject]:
        """
        Rows in the source's order; their checksums are added to `contents`. Threads decode images before the labeller
        needs them, and encode its maps. A batch holds only decoded images and depends only on the shard's records.
        """
        lookahead = 2 * max(self.labeller.batch_size, self.num_threads)

        def images() -> Iterator[PreparedImage | Reject]:
            for image, checksum in map_ahead(pool, self._prepare, records, lookahead):
                contents.append(checksum)
                yield image

        return map_ahead(pool, self._encode, self._label_batches(images()), lookahead)

    def _label_batches(
        self, images: Iterable[PreparedImage | Reject]
    ) -> Iterator[tuple[PreparedImage, LabelMaps] | Reject]:
        batch: list[PreparedImage] = []
        for image in images:
            if isinstance(image, Reject):
                yield image
                continue
            batch.append(image)
            if len(batch) == self.labeller.batch_size:
                yield from self._label_batch(batch)
                batch = []
        if batch:
            yield from self._label_batch(batch)

    def _label_batch(self, batch: Sequence[PreparedImage]) -> list[tuple[PreparedImage, LabelMaps] | Reject]:
        """Maps of a batch. If the labeller refuses it, its images are tried one by one."""
        try:
            return list(zip(batch, self.labeller(batch)))
        except ValueError as error:
            if len(batch) == 1:
                return [_refused(batch[0], error)]
        return [result for image in batch for result in self._label_batch([image])]

    def _encode(self, labelled: tuple[PreparedImage, LabelMaps] | Reject) -> dict[str, Any] | Reject:
        if isinstance(labelled, Reject):
            return labelled
        try:
            return build_row(*labelled, len(self.labeller.id2label), self.options)
        except ValueError as error:
            return _refused(labelled[0], error)

    def _check_rejects(self, info: ShardInfo) -> None:
        if info.records >= _FEW_IMAGES and len(info.rejects) > self.max_reject_share * info.records:
            raise RuntimeError(
                f"{len(info.rejects)} of {info.records} images of shard {info.name} failed, the first, "
                f"{info.rejects[0].location}: {info.rejects[0].reason}. Is the source still there, and is it the "
                f"right one? If so, raise max_reject_share (now {self.max_reject_share}) and run again"
            )


def _refused(image: PreparedImage, error: ValueError) -> Reject:
    return Reject(image.record.image_id, image.record.location, f"cannot be labelled: {error}")


def map_ahead(
    pool: Executor, function: Callable[[Item], Result], items: Iterable[Item], lookahead: int
) -> Iterator[Result]:
    """Ordered `map` in a pool that works at most `lookahead` items ahead."""
    pending: collections.deque[Future[Result]] = collections.deque()
    for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) > lookahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def run_local(
    task: LabellingTask, parts: Sequence[Part], num_workers: int, report: Callable[[int], None]
) -> Iterator[ShardInfo]:
    """
    Label parts on this machine.

    Args:
        task: What to do.
        parts: Parts of the source that are not finished.
        num_workers (`int`): Processes, each with its own labeller. 1 labels in this process.
        report: Called with the number of images just finished: image by image in this process, part by part in others.

    Yields:
        Shards as they are finished.
    """
    if num_workers == 1:
        # The caller's labeller stays without weights, so that it can be pickled again.
        task = replace(task, labeller=copy.copy(task.labeller))
        task.labeller.start(0)
        for part in parts:
            yield from task.run_part(part, report)
        return

    context = multiprocessing.get_context("spawn")  # threads and CUDA do not survive a fork
    numbers = context.SimpleQueue()
    for number in range(num_workers):
        numbers.put(number)
    alive, job = context.Pipe(duplex=False)
    threads = max((os.cpu_count() or 1) // num_workers, 1)
    with ProcessPoolExecutor(num_workers, context, _start_worker, (task, numbers, alive, threads)) as pool:
        try:
            for future in as_completed([pool.submit(_run_part, part) for part in parts]):
                for shard in future.result():
                    report(shard.records)
                    yield shard
        except BaseException:
            job.close()  # ends the workers at once; finished shards stay
            raise


# The task of a worker process.
_task: LabellingTask


def _start_worker(task: LabellingTask, numbers: Any, alive: Any, num_threads: int) -> None:
    global _task
    import torch

    def exit_with_job() -> None:
        alive.poll(None)  # until the job closes its end, or is killed
        os._exit(1)

    threading.Thread(target=exit_with_job, daemon=True).start()
    torch.set_num_threads(num_threads)
    task.labeller.start(numbers.get())
    _task = task


def _run_part(part: Part) -> list[ShardInfo]:
    return list(_task.run_part(part))
