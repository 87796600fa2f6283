"""
`--estimate`: time, memory and storage of a job, measured on a small part of it. The part runs in a scratch folder
beside the output folder, on the same disk, which is then removed.
"""

from __future__ import annotations

import contextlib
import copy
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch

from ..training.checkpoints import SIGNALS
from ..utils.files import check_writable


#: Steps or batches at the start that are not counted, the fewest that are, and the seconds to measure for.
WARM_UP, FEWEST, SECONDS = 2, 3, 10.0
#: A share of the time below this is not mentioned.
SMALL_SHARE = 0.01


@dataclass
class EstimateArguments:
    """Estimate."""

    estimate: bool = field(
        default=False,
        metadata={"help": "Measure a small part, print what the whole would take, and keep nothing."},
    )
    estimate_devices: int = field(default=8, metadata={"help": "Also estimate the time on this many devices."})

    def __post_init__(self) -> None:
        if self.estimate_devices < 1:
            raise ValueError(f"estimate_devices: expected at least 1, got {self.estimate_devices}")


@contextlib.contextmanager
def scratch_folder(output_dir: str | os.PathLike) -> Iterator[Path]:
    """
    A folder beside `output_dir`, removed when the block ends, also by a signal. In the block `datasets` writes its
    caches of row selections to a temporary folder and not beside the dataset.

    Raises:
        `OSError`: if no folder can be written there.
    """
    parent = Path(output_dir).absolute().parent
    while not parent.is_dir():
        parent = parent.parent
    check_writable(parent)
    is_caching, before = datasets.is_caching_enabled(), end_at_once()
    datasets.disable_caching()
    try:
        with tempfile.TemporaryDirectory(prefix=f".{Path(output_dir).name}-estimate-", dir=parent) as folder:
            yield Path(folder)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if is_caching:
            datasets.enable_caching()


def end_at_once() -> dict[int, Any]:
    """
    Let signals that ask the process to end raise an exception, since nothing has to be saved first. Ignored signals
    stay ignored. Returns the earlier handlers.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone receives signals
        return {}
    return {number: signal.signal(number, _end) for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN}


def _end(number: int, frame: Any) -> None:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


def peak_memory(device: torch.device) -> int | None:
    """Most bytes that this process had allocated on the GPU, or resident on a CPU; `None` where that is unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def memory_in_words(device: torch.device, peak: int | None) -> str:
    if peak is None:
        return "memory: this system does not say"
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        return f"memory: {readable_bytes(peak)} on the GPU at most, of {readable_bytes(total)}"
    return f"memory: {readable_bytes(peak)} in this process at most"


def storage_in_words(parts: dict[str, float], output_dir: str | os.PathLike) -> str:
    """`storage: 2.1 GB in runs/1: 3 checkpoints 2.0 GB, encoder 86 MB`, and whether the disk has room for it."""
    total, folder = sum(parts.values()), Path(output_dir).absolute()
    while not folder.is_dir():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    listed = ", ".join(f"{name} {readable_bytes(size)}" for name, size in parts.items() if size)
    warning = f"; the disk has only {readable_bytes(free)} free" if free < total else ""
    return f"storage: {readable_bytes(total)} in {output_dir}: {listed}{warning}"


def readable_bytes(number: float) -> str:
    """`1.7 kB`, `120 MB` or `1.3 GB`."""
    for size, unit in ((1e12, "TB"), (1e9, "GB")):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number / 1e6:.0f} MB" if number >= 1e6 else f"{number / 1e3:.1f} kB"


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def rate_in_words(images: float, seconds: float) -> str:
    rate = images / seconds
    return f"{rate:.0f} images/s" if rate >= 20 else f"{rate:.2g} images/s"


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def without(args: Any, **fields: Any) -> Any:
    """A copy of training arguments with other values, which are not checked or resolved again."""
    args = copy.copy(args)
    for name, value in fields.items():
        setattr(args, name, value)
    return args
