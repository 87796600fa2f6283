"""
Time to start, compared with transformers and timm: to load a base encoder, to import the package, to start a command.

    python benchmarks/start_up.py

Numbers are medians in seconds, in turns with the peer: of loading in this process from a local folder; of imports and
commands, each in a process of its own, processor time, which other programs disturb less.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from common import add_common_arguments, in_turns, report
from transformers import AutoModel, ViTConfig, ViTModel

from c2fmae_hf import SIZES, C2FMAEConfig, C2FMAEModel
from c2fmae_hf.publishing.repository import save_repository


COMMAND = "import sys; from c2fmae_hf.commands.main import main; sys.argv = ['c2fmae', {}'--help']; sys.exit(main())"
# A name, our program and the peer's.
PROGRAMS = (
    (
        "import c2fmae_hf; peer: transformers' models and timm",
        "import c2fmae_hf",
        "import transformers.modeling_utils, timm",
    ),
    ("c2fmae --help; peer: import transformers", COMMAND.format(""), "import transformers"),
    (
        "c2fmae pretrain --help; peer: transformers' Trainer",
        COMMAND.format("'pretrain', "),
        "from transformers import Trainer",
    ),
)


def processor_time(program: str) -> float:
    """Seconds of a Python program, in a process of its own."""
    before = os.times()
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="base")
    add_common_arguments(parser, rounds=5)
    args = parser.parse_args()
    config = C2FMAEConfig.from_size(args.size)
    names = (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "image_size",
        "patch_size",
    )
    vit = ViTConfig(**{name: getattr(config, name) for name in names})
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder) / "c2fmae", Path(folder) / "vit"
        save_repository(C2FMAEModel(config), ours)
        ViTModel(vit, add_pooling_layer=False).save_pretrained(theirs)
        loads = {
            "ours": lambda: AutoModel.from_pretrained(ours),
            "peer": lambda: ViTModel.from_pretrained(theirs, add_pooling_layer=False),
        }
        seconds = in_turns(loads, args.rounds, args.warmup)
    measured = {f"load ViT-{args.size.title()}; peer: transformers' ViT": seconds}
    for what, *programs in PROGRAMS:
        turns = [[processor_time(program) for program in programs] for _ in range(args.rounds)]
        measured[what] = dict(zip(("ours", "peer"), zip(*turns)))
    for what, seconds in measured.items():
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        rows.append({"what": what, **medians, "times the peer": medians["ours"] / medians["peer"]})
    report(args, rows)


if __name__ == "__main__":
    main()
