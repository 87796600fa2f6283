"""
Speed of a pre-training step (forward, backward, fused AdamW): C2FMAE with three granularities and transformers' ViTMAE
with one, with the same encoder, images, mask ratio, batch and precision, in one process, in turns.

    python benchmarks/pretraining_step.py
    python benchmarks/pretraining_step.py --dtype bfloat16 --attention sdpa eager --prediction_ratios 1 0.5 0.25 0.125
    python benchmarks/pretraining_step.py --batch_size 8 --compile
    python benchmarks/pretraining_step.py --device cuda --dtype bfloat16 --size large --batch_size 256 --compile
    python benchmarks/pretraining_step.py --memory
    python benchmarks/pretraining_step.py --profile

ViTMAE has its published decoder (eight blocks, 512 wide) at every size, so it is a fair peer from base upwards. It
runs with its fastest attention, sdpa; `--attention` sets ours. FLOPs are PyTorch's count for one step. The share of
the matrix rate compares a step's FLOP/s with those of a large matrix product, measured here; at 100 % a step could not
be faster. `--memory` runs each contender in its own process and gives the peak memory: allocations on a GPU, on a CPU
the resident memory minus that before the model was built. `--profile` prints the time of the last contender's step by
operator.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from common import add_common_arguments, compare, in_turns, matrix_rate, peak_memory, report, synchronize
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from c2fmae_hf import SIZES, C2FMAEConfig, C2FMAEForPreTraining
from c2fmae_hf.masking import MaskingCurriculum, mask_by_strategy
from c2fmae_hf.targets import instance_labels_from_map


PEER = "ViTMAE"


def build(name: str, args: argparse.Namespace) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The contender named `ViTMAE` or `C2FMAE <ratio> <attention>`, and its batch."""
    torch.manual_seed(0)
    config = C2FMAEConfig.from_size(args.size, num_semantic_classes=args.classes, image_size=args.image_size)
    images = torch.randn(args.batch_size, 3, args.image_size, args.image_size)
    if name == PEER:
        shared = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "patch_size")
        fields = {field: getattr(config, field) for field in (*shared, "image_size", "mask_ratio", "norm_pix_loss")}
        model = ViTMAEForPreTraining(ViTMAEConfig(**fields, attn_implementation=args.peer_attention))
        return model.to(args.device).train(), {"pixel_values": images.to(args.device)}
    _, ratio, attention = name.split()
    config.decoder_prediction_ratio = float(ratio)
    config._attn_implementation = attention
    batch = {"pixel_values": images, **labels(config, args.batch_size)}
    model = C2FMAEForPreTraining(config).to(args.device).train()
    inputs: dict[str, Any] = {key: value.to(args.device) for key, value in batch.items()}
    return model, {**inputs, "num_masked": config.num_masked_patches(config.num_patches)}


def labels(config: C2FMAEConfig, batch_size: int) -> dict[str, torch.Tensor]:
    """Labels and masks in mid-curriculum, for maps of rectangles with a class and an instance each."""
    height, width = (side // config.label_stride for side in config.image_height_width)
    semantic = torch.zeros(batch_size, height, width, dtype=torch.int64)
    instance = torch.zeros_like(semantic)
    for row in range(batch_size):
        for number in range(1, 9):
            top, left = (int(torch.randint(0, side * 3 // 4, ())) for side in (height, width))
            area = (row, slice(top, top + height // 3), slice(left, left + width // 3))
            semantic[area], instance[area] = int(torch.randint(0, config.num_semantic_classes, ())), number
    strategy = MaskingCurriculum().draw(torch.full((batch_size,), 0.5), torch.rand(batch_size))
    mask, _ = mask_by_strategy(
        semantic,
        instance,
        strategy,
        torch.rand(batch_size, 2 * config.num_patches),
        config.num_masked_patches(config.num_patches),
        config.label_cells_per_side,
    )
    return {
        "bool_masked_pos": mask,
        "semantic_labels": semantic,
        "instance_labels": instance_labels_from_map(instance),
    }


def make_step(model: nn.Module, batch: dict[str, Any], args: argparse.Namespace) -> Callable[[], float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.5e-4, weight_decay=0.05, fused=True)
    forward = torch.compile(model) if args.compile else model
    device_type, dtype = torch.device(args.device).type, getattr(torch, args.dtype)

    def step() -> float:
        with torch.autocast(device_type, dtype, enabled=dtype != torch.float32):
            loss = forward(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return step


def count_flops(step: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def three_steps(name: str, args: argparse.Namespace) -> None:
    step = make_step(*build(name, args), args)
    for _ in range(3):
        step()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="base")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--classes", type=int, default=133, help="semantic classes; COCO panoptic has 133")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="bfloat16 uses autocast")
    parser.add_argument("--attention", nargs="+", default=["sdpa"], help="attention of C2FMAE")
    parser.add_argument("--peer_attention", default="sdpa")
    parser.add_argument("--prediction_ratios", nargs="+", default=["1.0", "0.5", "0.25"])
    parser.add_argument("--compile", action="store_true", help="use torch.compile for every contender")
    parser.add_argument("--matrix_size", type=int, help="side of the matrix product; 8192 on a GPU, 4096 on a CPU")
    parser.add_argument("--memory", action="store_true", help="measure peak memory instead of time")
    parser.add_argument("--profile", action="store_true", help="print the operators of one step instead")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    add_common_arguments(parser, rounds=10)
    return parser.parse_args()


def main() -> None:
    args = parse()
    if args.child is not None:
        print(json.dumps(peak_memory(args.device, lambda: three_steps(args.child, args))))
        return
    names = [PEER, *(f"C2FMAE {ratio} {kind}" for ratio in args.prediction_ratios for kind in args.attention)]
    if args.memory:
        rows = []
        for name in names:
            command = [sys.executable, *sys.argv, "--child", name]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            rows.append({"contender": name, "peak memory, MiB": float(output.splitlines()[-1])})
        report(args, [{**row, "of the peer's": row["peak memory, MiB"] / rows[0]["peak memory, MiB"]} for row in rows])
        return

    steps = {name: make_step(*build(name, args), args) for name in names}
    if args.profile:
        step = steps[names[-1]]
        step()
        with torch.profiler.profile() as profile:
            step()
            synchronize(args.device)
        key = "self_cuda_time_total" if args.device.startswith("cuda") else "self_cpu_time_total"
        print(profile.key_averages().table(sort_by=key, row_limit=25, max_name_column_width=60))
        return
    plain = argparse.Namespace(**{**vars(args), "compile": False})
    flops = {name: count_flops(make_step(*build(name, args), plain)) for name in names}
    size = args.matrix_size or (8192 if args.device.startswith("cuda") else 4096)
    rate = matrix_rate(args.device, getattr(torch, args.dtype), size)
    speeds = compare(in_turns(steps, args.rounds, args.warmup, args.device), args.batch_size, PEER)
    rows = [
        {
            "contender": name,
            "images/s": speed["per_second"],
            "slowest": speed["slowest"],
            "fastest": speed["fastest"],
            "times ViTMAE": speed["times_peer"],
            "GFLOP an image": flops[name] / args.batch_size / 1e9,
            "share of the matrix rate, %": 100 * speed["per_second"] * flops[name] / args.batch_size / rate,
        }
        for name, speed in speeds.items()
    ]
    settings = f"{args.size}, batch {args.batch_size}, {args.image_size} px, {args.dtype}, {args.classes} classes"
    report(args, rows, settings=settings, compiled=args.compile, matrix_gflops_per_second=round(rate / 1e9, 1))


if __name__ == "__main__":
    main()
