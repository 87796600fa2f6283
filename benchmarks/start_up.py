"""
Start-up time compared with transformers and timm: importing the package, and loading a published base encoder.

    python benchmarks/start_up.py

Each number is the median of `--repeats` turns, alternating with the peer: imports in processes of their own (processor
time), loading in this process from a local folder. Takes a minute on two CPU cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from transformers import AutoModel, ViTConfig, ViTModel

from c2fmae_hf import C2FMAEConfig, C2FMAEModel
from c2fmae_hf.publishing.repository import save_repository


IMPORTS = {"ours": "import c2fmae_hf", "peers": "import transformers.modeling_utils, timm"}


def compare(tasks: dict[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each task, alternating, after a warm-up turn."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(repeats + 1):
        for name, task in tasks.items():
            taken = task()
            if turn > 0:
                seconds[name].append(taken)
    return seconds


def import_in_process(code: str) -> float:
    """Processor time in seconds, which other processes disturb less than wall-clock time."""
    before = os.times()
    subprocess.run([sys.executable, "-c", code], check=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def timed(task: Callable[[], object]) -> float:
    started = time.perf_counter()
    task()
    return time.perf_counter() - started


def main(args: list[str] | None = None) -> dict[str, dict[str, float]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="base")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(args)
    config = C2FMAEConfig.from_size(options.size)
    names = (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "image_size",
        "patch_size",
    )
    vit = ViTConfig(**{name: getattr(config, name) for name in names})
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder) / "c2fmae", Path(folder) / "vit"
        save_repository(C2FMAEModel(config), ours)
        ViTModel(vit, add_pooling_layer=False).save_pretrained(theirs)
        loads = {
            "ours": lambda: timed(lambda: AutoModel.from_pretrained(ours)),
            "peers": lambda: timed(lambda: ViTModel.from_pretrained(theirs, add_pooling_layer=False)),
        }
        measured = {
            "import": compare(
                {name: partial(import_in_process, code) for name, code in IMPORTS.items()}, options.repeats
            ),
            "load": compare(loads, options.repeats),
        }
    results = {}
    for name, seconds in measured.items():
        medians = {who: statistics.median(values) for who, values in seconds.items()}
        results[name] = {**medians, "ratio": medians["ours"] / medians["peers"]}
    print(json.dumps(results, indent=1))
    return results


if __name__ == "__main__":
    main()
