"""
Speed and memory of labelling, by engine and by number of photographs.

    python benchmarks/labelling.py --source "photos/" --images 1000
    python benchmarks/labelling.py --source "photos/" --growth 1000 2000 5000 10000

The first command compares engines on the same photographs: one process, two processes, two Ray actors, in turns,
`--rounds` times. The second labels more and more photographs in one process. Each measurement runs in its own process.
Memory is the highest sum of the resident sizes of that process and its children, sampled every 0.2 s; shared memory
counts in each. Time covers labelling and the start of workers, but not the search for classes, which always takes the
same time. Prints a table and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

import psutil

from c2fmae_hf.labelling.job import label_images
from c2fmae_hf.labelling.labellers.classical import ClassicalLabeller
from c2fmae_hf.labelling.records import OutputOptions, read_bytes
from c2fmae_hf.labelling.sources.folder import FolderSource
from c2fmae_hf.labelling.sources.open import open_source
from c2fmae_hf.utils.files import replace_file


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


def label(photos: Path, number: int, engine: str, num_workers: int, rows_per_shard: int) -> dict:
    """Label the photographs. Runs in the measured process."""
    with tempfile.TemporaryDirectory() as folder:
        source = FolderSource(photos, paths=[f"{index:06d}.jpg" for index in range(number)])
        labeller = ClassicalLabeller(fit_images=64)
        options = OutputOptions(rows_per_shard=rows_per_shard)
        summary = label_images(source, labeller, folder, options=options, engine=engine, num_workers=num_workers)
    return {"rows": summary.rows, "seconds": summary.seconds}


def measure(photos: Path, number: int, engine: str, num_workers: int, rows_per_shard: int) -> dict:
    """Run one measurement in its own process, and add its peak memory."""
    arguments = json.dumps([str(photos), number, engine, num_workers, rows_per_shard])
    process = subprocess.Popen(
        [sys.executable, __file__, "--child", arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
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
    started = time.perf_counter()
    output = process.communicate()[0]
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    if process.returncode != 0:
        raise RuntimeError(f"labelling {number} images with {engine} failed")
    result = json.loads(output.splitlines()[-1])
    return {
        "images": number,
        "engine": engine,
        "workers": num_workers,
        "images_per_second": result["rows"] / result["seconds"],
        "seconds": result["seconds"],
        "seconds_with_start": seconds,
        "peak_memory_mib": peak / 2**20,
    }


def summarise(name: str, runs: list[dict]) -> str:
    speeds = [run["images_per_second"] for run in runs]
    memory = max(run["peak_memory_mib"] for run in runs)
    spread = f"{min(speeds):.2f} to {max(speeds):.2f}"
    return f"| {name} | {runs[0]['images']} | {statistics.median(speeds):.2f} | {spread} | {memory:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", help="photographs: a folder, Parquet or tar files, ...")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--growth", type=int, nargs="+", help="label these numbers of photographs instead")
    parser.add_argument("--rows_per_shard", type=int, default=100)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/labelling.json"))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        photos, *rest = json.loads(args.child)
        print(json.dumps(label(Path(photos), *rest)))
        return
    if args.source is None:
        parser.error("--source is required")

    runs: dict[str, list[dict]] = {}
    with tempfile.TemporaryDirectory() as folder:
        export(args.source, Path(folder), max(args.growth or [args.images]))
        if args.growth:
            for number in args.growth:
                runs[f"1 process, {number}"] = [measure(Path(folder), number, "local", 1, args.rows_per_shard)]
                print(summarise(f"1 process, {number}", runs[f"1 process, {number}"]), file=sys.stderr)
        else:
            for _ in range(args.rounds):
                for name, (engine, workers) in ENGINES.items():
                    run = measure(Path(folder), args.images, engine, workers, args.rows_per_shard)
                    runs.setdefault(name, []).append(run)
                    print(f"{name}: {run['images_per_second']:.2f} images/s", file=sys.stderr)
    machine = {
        "date": date.today().isoformat(),
        "cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "python": platform.python_version(),
        **{name: version(name) for name in ("scikit-image", "scikit-learn", "pyarrow", "ray")},
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(args.output) as temporary:
        temporary.write_text(json.dumps({"machine": machine, "source": args.source, "runs": runs}, indent=1) + "\n")
    print("| engine | images | images/s (median) | range | peak memory, MiB |\n| --- | --- | --- | --- | --- |")
    print("\n".join(summarise(name, measured) for name, measured in runs.items()))
    print(f"\n{machine}\nResults: {args.output}")


if __name__ == "__main__":
    main()
