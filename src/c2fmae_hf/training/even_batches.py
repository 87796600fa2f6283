"""As many batches of an evaluation stream in every process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from accelerate import Accelerator
from torch.utils.data import DataLoader

from .checkpoints import in_any_process


# Set in batches that repeat rows and count nowhere.
IS_FILLER = "is_filler"


class EvenBatches:
    """
    A loader with as many batches in every process, as collective operations need: a process that has no more rows
    repeats its last batch, with `is_filler` set.

    Args:
        loader (`DataLoader`): Loader of this process's share.
        accelerator (`Accelerator`): Of all processes.

    Raises:
        `ValueError`: on reading, if this process has no rows.
    """

    def __init__(self, loader: DataLoader, accelerator: Accelerator) -> None:
        self.loader, self.accelerator = loader, accelerator
        self.dataset, self.batch_size = loader.dataset, loader.batch_size

    def __iter__(self) -> Iterator[dict[str, Any]]:
        last: dict[str, Any] = {}
        batches = iter(self.loader)
        while True:
            batch = next(batches, None)
            if not in_any_process(self.accelerator, batch is not None):
                return
            if batch is None and not last:
                raise ValueError(
                    f"evaluation stream: expected at least one row for each of {self.accelerator.num_processes} "
                    f"processes, got none for process {self.accelerator.process_index}. Use fewer processes or more "
                    "rows"
                )
            last = {**last, IS_FILLER: True} if batch is None else batch
            yield last
