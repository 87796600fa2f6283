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
    """An actor: one labeller, on one GPU where there is one."""

    def __init__(self, task: LabellingTask, num_threads: int | None) -> None:
        if num_threads is not None:
            import torch

            torch.set_num_threads(num_threads)
        self.task = task
        # Ray shows an actor only its own accelerator.
        task.labeller.start(0)

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
    torch_threads: int | None = None,
) -> Iterator[ShardInfo]:
    """
    Label parts on a Ray cluster. A row of the Ray dataset is a part; actors label parts and write shards to the
    dataset's folder, which every machine must see under the same path. The same shards with the same bytes as
    [`run_local`], as far as the machines compute the same.

    Args:
        task, parts, report: As for [`run_local`]; progress is reported part by part.
        num_workers (`int`): Actors, each with a labeller of its own.
        address (`str`, *optional*): Of a cluster (`auto` for the one that this machine is part of); by default Ray is
            started on this machine and stopped at the end.
        num_gpus (`float`, *optional*): Per actor; by default 1 where the cluster has any.
        num_cpus (`float`, *optional*): Per actor; by default 1.
        torch_threads (`int`, *optional*): Per actor; by default left to Ray.

    Yields:
        Shards as their parts are finished.

    Raises:
        `ImportError`: if Ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError('engine="ray" needs Ray: pip install "c2fmae-hf[ray]"') from error

    was_running = ray.is_initialized()
    if not was_running:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if address is None:
            options.update(include_dashboard=False)
        ray.init(address=address, **options)
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        if num_gpus is None:
            num_gpus = 1 if ray.cluster_resources().get("GPU", 0) >= 1 else 0
        rows = ray.data.from_items([{"part": part} for part in parts], override_num_blocks=len(parts))
        results = rows.map_batches(
            _PartLabeller,
            fn_constructor_args=(task, torch_threads),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=num_workers),
            num_gpus=num_gpus,
            num_cpus=num_cpus if num_cpus is not None else 1,
        )
        # Its plans and resources are not what a user waits for. (Ray sets its own level when it is imported.)
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        for row in results.iter_rows():
            shard = ShardInfo.from_json(row["shard"])
            report(shard.records)
            yield shard
    finally:
        if not was_running:
            ray.shutdown()
