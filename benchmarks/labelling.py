"""
Speed and memory of labelling, by engine and by number of photographs.

    python benchmarks/labelling.py --source "photos/" --images 1000
    python benchmarks/labelling.py --source "photos/" --images 1000 2000 5000 10000 --engines "1 process" --rounds 1

Engines and numbers of photographs take turns, `--rounds` times, each in a process of its own.
Memory is the highest sum of the resident sizes of that process and its children, sampled every 0.2 s; shared memory
counts in each. Time covers labelling and the start of workers, but not the search for classes, which always takes the
same time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from common import add_common_arguments, report

from c2fmae_hf.labelling.job import label_images
from c2fmae_hf.labelling.labellers.classical import ClassicalLabeller
from c2fmae_hf.labelling.records import OutputOptions, read_bytes
from c2fmae_hf.labelling.sources.folder import FolderSource
from c2fmae_hf.labelling.sources.open import open_source


ENGINES = {"1 process": ("local", 1), "2 processes": ("local", 2), "2 Ray actors": ("ray", 2)}


def export(pattern: str, folder: Path, number: int) -> int:
    """Write the first photographs of a source as files; repeat them under other names if there are too few."""
    source = open_source(pattern)
    count = 0
    while count < number:
        before = count
        for part in source.parts(1000):
            for record in source.read(part):
                if count == number:
                    return count
                (folder / f"{count:06d}.jpg").write_bytes(read_bytes(record.value))
                count += 1
        if count == before:
            raise ValueError(f"source: expected images in {pattern!r}, found none")
    return count


def label(photos: Path, number: int, engine: str, num_workers: int, rows_per_shard: int) -> dict[str, Any]:
    """Label the photographs. Runs in the measured process."""
    with tempfile.TemporaryDirectory() as folder:
        source = FolderSource(photos, paths=[f"{index:06d}.jpg" for index in range(number)])
        labeller = ClassicalLabeller(fit_images=64)
        options = OutputOptions(rows_per_shard=rows_per_shard)
        summary = label_images(source, labeller, folder, options=options, engine=engine, num_workers=num_workers)
    return {"rows": summary.rows, "seconds": summary.seconds}


def measure(photos: Path, number: int, engine: str, num_workers: int, rows_per_shard: int) -> dict[str, Any]:
    """Run one measurement in its own process, and add its peak memory."""
    arguments = json.dumps([str(photos), number, engine, num_workers, rows_per_shard])
    process = subprocess.Popen(
        [sys.executable, __file__, "--child", arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    peak = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.2):
            try:
                root = psutil.Process(process.pid)
                tree = [root, *root.children(recursive=True)]
                peak = max(peak, sum(entry.memory_info().rss for entry in tree))
            except psutil.NoSuchProcess:
                continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    output, errors = process.communicate()
    done.set()
    watcher.join()
    if process.returncode != 0:
        raise RuntimeError(f"labelling {number} images with {engine} failed: {errors[-2000:]}")
    result = json.loads(output.splitlines()[-1])
    return {
        "images": number,
        "images_per_second": result["rows"] / result["seconds"],
        "peak_memory_mib": peak / 2**20,
    }


def summarise(name: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    speeds = [run["images_per_second"] for run in runs]
    return {
        "engine": name,
        "images": runs[0]["images"],
        "images/s": statistics.median(speeds),
        "slowest": min(speeds),
        "fastest": max(speeds),
        "peak memory, MiB": max(run["peak_memory_mib"] for run in runs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", help="photographs: a folder, Parquet or tar files, ...")
    parser.add_argument("--images", type=int, nargs="+", default=[1000])
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), default=list(ENGINES))
    parser.add_argument("--rows_per_shard", type=int, default=100)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    add_common_arguments(parser, rounds=3)
    args = parser.parse_args()
    if args.child is not None:
        photos, *rest = json.loads(args.child)
        print(json.dumps(label(Path(photos), *rest)))
        return
    if args.source is None:
        parser.error("--source is required")

    runs: dict[tuple[str, int], list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        export(args.source, Path(folder), max(args.images))
        for _ in range(args.rounds):
            for name in args.engines:
                for number in args.images:
                    run = measure(Path(folder), number, *ENGINES[name], args.rows_per_shard)
                    runs.setdefault((name, number), []).append(run)
                    print(f"{name}, {number} images: {run['images_per_second']:.2f} images/s", file=sys.stderr)
    others = {name: version(name) for name in ("scikit-image", "scikit-learn", "pyarrow", "ray")}
    report(args, [summarise(name, measured) for (name, _), measured in runs.items()], further_versions=others)


if __name__ == "__main__":
    main()
