"""
Speed and memory of a pre-training step by batch size, image size, number of semantic classes, and depth and width of
the decoder. One of them changes at a time.

    python benchmarks/growth.py
    python benchmarks/growth.py --device cuda --dtype bfloat16 --size base --batch_sizes 64 256 1024

Every measurement runs in its own process. It gives the median of `--rounds` steps after the first, and the peak memory
as in `pretraining_step.py --memory`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from typing import Any

import torch
from common import add_common_arguments, in_turns, peak_memory, report
from pretraining_step import labels, step_of

from c2fmae_hf import SIZES, C2FMAEConfig, C2FMAEForPreTraining


def measure(fields: dict[str, Any], args: argparse.Namespace) -> dict[str, float]:
    """Measure a step. Runs in the measured process."""
    torch.manual_seed(0)
    batch_size, width = fields.pop("batch_size"), fields["decoder_hidden_size"]
    shape = {"decoder_num_attention_heads": width // 64, "decoder_intermediate_size": 4 * width}
    config = C2FMAEConfig.from_size(args.size, **fields, **shape)
    seconds: list[float] = []

    def run() -> None:
        batch = {"pixel_values": torch.randn(batch_size, 3, *config.image_height_width), **labels(config, batch_size)}
        model = C2FMAEForPreTraining(config).to(args.device).train()
        step = step_of(model, model, {name: value.to(args.device) for name, value in batch.items()}, args)
        seconds.extend(in_turns({"step": step}, args.rounds, args.warmup, args.device)["step"])

    memory = peak_memory(args.device, run)
    return {"images/s": batch_size / statistics.median(seconds), "peak memory, MiB": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="tiny")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--prediction_ratio", type=float, default=1.0)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[16, 64, 128])
    parser.add_argument("--image_sizes", type=int, nargs="+", default=[224, 448, 1024])
    parser.add_argument("--classes", type=int, nargs="+", default=[20, 133, 1000])
    parser.add_argument("--depths", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--widths", type=int, nargs="+", default=[192, 512])
    parser.add_argument("--child", help=argparse.SUPPRESS)
    add_common_arguments(parser, rounds=3)
    args = parser.parse_args()
    if args.child is not None:
        print(json.dumps(measure(json.loads(args.child), args)))
        return

    start = {
        "batch_size": args.batch_sizes[0],
        "image_size": args.image_sizes[0],
        "num_semantic_classes": args.classes[0],
        "decoder_num_hidden_layers": args.depths[0],
        "decoder_hidden_size": args.widths[0],
        "decoder_prediction_ratio": args.prediction_ratio,
    }
    ranges = {
        "batch_size": args.batch_sizes,
        "image_size": args.image_sizes,
        "num_semantic_classes": args.classes,
        "decoder_num_hidden_layers": args.depths,
        "decoder_hidden_size": args.widths,
    }
    rows = []
    for field, values in ranges.items():
        for value in values:
            fields = {**start, field: value}
            command = [sys.executable, *sys.argv, "--child", json.dumps(fields)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            rows.append({"what grows": field, "to": value, **json.loads(output.splitlines()[-1])})
            print(rows[-1], file=sys.stderr)
    report(args, rows, settings=f"{args.size}, {args.dtype}", start=start)


if __name__ == "__main__":
    main()
