"""Shared code of the benchmarks: contenders in turns, medians with spread, the machine, JSON and tables."""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

from c2fmae_hf.publishing.records import hardware, versions
from c2fmae_hf.publishing.redaction import hide_tokens
from c2fmae_hf.utils.files import write_json


def add_common_arguments(parser: argparse.ArgumentParser, rounds: int) -> None:
    parser.add_argument("--rounds", type=int, default=rounds, help="measured turns of every contender")
    parser.add_argument("--warmup", type=int, default=1, help="turns before the measured ones")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks") / f"{Path(sys.argv[0]).stem}.json")


def synchronize(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def in_turns(
    contenders: Mapping[str, Callable[[], Any]], rounds: int, warmup: int, device: str = "cpu"
) -> dict[str, list[float]]:
    """Seconds of every turn, in the order A B C A B C ..., so that other load on the machine affects all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(warmup + rounds):
        for name, contender in contenders.items():
            synchronize(device)
            started = time.perf_counter()
            contender()
            synchronize(device)
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - started)
        print(f"turn {turn + 1} of {warmup + rounds}", file=sys.stderr)
    return seconds


def compare(seconds: Mapping[str, Sequence[float]], items: int, peer: str) -> dict[str, dict[str, float]]:
    """
    Items per second of each contender in its median, slowest and fastest turn, and its speed relative to the peer (the
    median of the ratios within each turn).
    """
    return {
        name: {
            "per_second": items / statistics.median(values),
            "slowest": items / max(values),
            "fastest": items / min(values),
            "times_peer": statistics.median(theirs / ours for theirs, ours in zip(seconds[peer], values)),
        }
        for name, values in seconds.items()
    }


def matrix_rate(device: str, dtype: torch.dtype, size: int, rounds: int = 5) -> float:
    """FLOP/s of a square matrix product, the best of a few: an upper bound for the machine."""
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = in_turns({"matrix product": lambda: left @ right}, rounds, 2, device)["matrix product"]
    return 2 * size**3 / min(seconds)


def peak_memory(device: str, run: Callable[[], Any]) -> float:
    """
    Peak memory of a call in MiB: allocations on a GPU; on a CPU the growth of the process's peak resident memory,
    which is right only in a fresh process.
    """
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run()
    synchronize(device)
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10


def machine(device: str) -> dict[str, Any]:
    content = {"date": date.today().isoformat(), **hardware(), "threads": torch.get_num_threads(), **versions()}
    if torch.device(device).type == "cuda":
        content["device"] = torch.cuda.get_device_name()
    else:
        content["load_at_start"] = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    return content


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table, numbers with three digits."""

    def cell(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
        return "" if value is None else str(value)

    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [names, ["---"] * len(names), *([cell(row.get(name)) for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def report(args: argparse.Namespace, rows: Sequence[Mapping[str, Any]], **details: Any) -> None:
    """Print the table and the machine, and write both as JSON."""
    content = {"command": hide_tokens(sys.argv), "machine": machine(args.device), **details, "rows": list(rows)}
    write_json(args.output, content)
    print(f"\n{table(rows)}\n\n{content['command']}\n{content['machine']}")
    for name, value in details.items():
        print(f"{name}: {value}")
    print(f"Results: {args.output}")
