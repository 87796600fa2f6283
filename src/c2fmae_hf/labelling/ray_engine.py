"""Labelling on a Ray cluster, with Ray Data. Needs the `ray` extra."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from .engine import LabellingTask
from .shards import ShardInfo
from .sources.base import Part


class _PartLabeller:
    """An actor with one labeller."""

    def __init__(self, task: LabellingTask) -> None:
        self.task = task
        task.labeller.start(0)  # Ray shows an actor only its own accelerator

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        shards = [shard.to_json() for part in batch["part"] for shard in self.task.run_part(part)]
        return {"shard": np.array(shards, dtype=object)}


def run_ray(
    task: LabellingTask,
    parts: Sequence[Part],
    num_workers: int,
    report: Callable[[int], None],
    address: str | None = None,
    num_gpus: float | None = None,
    num_cpus: float | None = None,
) -> Iterator[ShardInfo]:
    """
    Label parts on a Ray cluster. Actors label parts and write shards to the dataset's folder, which every machine must
    see under the same path. The shards equal those of [`run_local`] if the machines compute the same numbers.

    Args:
        task, parts: As for [`run_local`].
        num_workers (`int`): Actors, each with its own labeller.
        report: Called with the number of images of each finished shard.
        address (`str`, *optional*): Address of a cluster; `auto` for the one this machine is part of. By default Ray
            starts on this machine and stops at the end.
        num_gpus (`float`, *optional*): GPUs per actor. Default: 1 if the cluster has any, else 0.
        num_cpus (`float`, *optional*): CPUs per actor. Default: 1.

    Yields:
        Shards as their parts are finished.
    """
    import ray

    was_running = ray.is_initialized()
    if not was_running:
        # No dashboard if Ray starts here; a cluster has its own.
        dashboard = False if address is None else None
        ray.init(address=address, include_dashboard=dashboard, log_to_driver=False, logging_level=logging.ERROR)
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        if num_gpus is None:
            num_gpus = 1 if ray.cluster_resources().get("GPU", 0) >= 1 else 0
        rows = ray.data.from_items([{"part": part} for part in parts], override_num_blocks=len(parts))
        results = rows.map_batches(
            _PartLabeller,
            fn_constructor_args=(task,),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=num_workers),
            num_gpus=num_gpus,
            num_cpus=1 if num_cpus is None else num_cpus,
        )
        # Hide Ray's plans and resources. Importing ray.data sets its level, so this comes after.
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        for row in results.iter_rows():
            shard = ShardInfo.from_json(row["shard"])
            report(shard.records)
            yield shard
    finally:
        if not was_running:
            ray.shutdown()
