"""
Speed of a pre-training step (forward, backward, fused AdamW): C2FMAE with three granularities and transformers' ViTMAE
with one, with the same encoder, images, mask ratio, batch and precision, in one process, in turns.

    python benchmarks/pretraining_step.py
    python benchmarks/pretraining_step.py --dtype bfloat16 --attention sdpa eager --prediction_ratios 1 0.5 0.25 0.125
    python benchmarks/pretraining_step.py --batch_size 8 --compile --uncompiled
    python benchmarks/pretraining_step.py --device cuda --dtype bfloat16 --size large --batch_size 256 --compile \\
        --compile_mode reduce-overhead
    python benchmarks/pretraining_step.py --batch_size 2 --dtype bfloat16 --counts --compile
    python benchmarks/pretraining_step.py --memory
    python benchmarks/pretraining_step.py --profile

ViTMAE has its published decoder (eight blocks, 512 wide) at every size, so it is a fair peer from base upwards. It
runs with its fastest attention, sdpa; `--attention` sets ours. FLOPs are PyTorch's count for one step. The share of
the matrix rate compares a step's FLOP/s with those of a large matrix product, measured here; at 100 % a step could not
be faster. On a GPU the table has the peak of allocations, too. `--memory` runs each contender in its own process and
gives the peak memory: allocations on a GPU, on a CPU the resident memory minus that before the model was built.

`--compile` compiles every contender; with `--uncompiled` each also runs uncompiled, and "times ViTMAE" refers to
ViTMAE uncompiled. AdamW is one fused operator, so it has nothing to compile. `--counts` counts the operators of a
step, each of which is at least one kernel on a GPU; with `--compile` also graphs, graph breaks, and the generated
kernels and library calls of the compiled step. `--profile` gives the time of the slowest contender's step by operator.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from common import add_common_arguments, compare, in_turns, matrix_rate, peak_memory, report, synchronize
from operators import CountOperators
from torch import nn
from torch._dynamo.utils import counters
from torch._inductor.utils import run_and_get_code
from torch.utils.flop_counter import FlopCounterMode
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from c2fmae_hf import SIZES, C2FMAEConfig, C2FMAEForPreTraining
from c2fmae_hf.masking import MaskingCurriculum, mask_by_strategy
from c2fmae_hf.targets import instance_labels_from_map


PEER = "ViTMAE"
COMPILED = ", compiled"


def build(name: str, args: argparse.Namespace) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The contender named `ViTMAE` or `C2FMAE <ratio> <attention>`, whether compiled or not, and its batch."""
    torch.manual_seed(0)
    name = name.removesuffix(COMPILED)
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


def make_step(name: str, args: argparse.Namespace) -> Callable[[], float]:
    model, batch = build(name, args)
    return step_of(model, compiled(model, args) if name.endswith(COMPILED) else model, batch, args)


def step_of(
    model: nn.Module, forward: Callable[..., Any], batch: dict[str, Any], args: argparse.Namespace
) -> Callable[[], float]:
    """A training step: `forward`, which may be the compiled model, backward, fused AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.5e-4, weight_decay=0.05, fused=True)

    def step() -> float:
        with autocast(args):
            loss = forward(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return step


def compiled(model: nn.Module, args: argparse.Namespace) -> Callable[..., Any]:
    options = {"mode": args.compile_mode} if args.compile_backend == "inductor" else {}
    return torch.compile(model, backend=args.compile_backend, **options)


def autocast(args: argparse.Namespace) -> torch.autocast:
    dtype = getattr(torch, args.dtype)
    return torch.autocast(torch.device(args.device).type, dtype, enabled=dtype != torch.float32)


def count(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Operators of an uncompiled step, and what the compiler makes of forward and backward."""
    model, batch = build(name, args)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for _ in range(2):  # the first step also makes the optimizer's state
        with CountOperators() as forward, autocast(args):
            loss = model(**batch).loss
        with CountOperators() as backward:
            loss.backward()
        with CountOperators() as update:
            optimizer.step()
        optimizer.zero_grad()
    parts = {"forward": forward, "backward": backward, "optimizer": update}
    row: dict[str, Any] = {"contender": name, **{part: one.launched.total() for part, one in parts.items()}}
    row["all operators"] = sum(one.launched.total() for one in parts.values())
    row["of them casts and copies"] = sum(one.launched["aten::_to_copy"] for one in parts.values())
    if name.endswith(COMPILED):
        torch.compiler.reset()
        counters.clear()
        function = compiled(model, args)

        def step() -> None:
            with autocast(args):
                loss = function(**batch).loss
            loss.backward()

        _, sources = run_and_get_code(step)
        row["graphs"] = counters["stats"]["unique_graphs"]
        row["graph breaks"] = sum(counters["graph_break"].values())
        calls = Counter(kind for source in sources for kind in calls_in(source))
        row.update({"generated kernels": calls["generated"], "library calls": calls["library"]})
    return row


def calls_in(source: str) -> list[str]:
    """The kernels that a program of inductor calls: those that it generated, and those of libraries."""
    body = source.partition("def call(")[2]
    generated = re.findall(r"^\s+(?:cpp_fused\w*|triton_\w+\.run)\(", body, flags=re.MULTILINE)
    library = re.findall(r"\b(?:extern_kernels\.\w+|torch\.ops\.(?:aten|mkldnn|mkl)\.\w+(?:\.\w+)*)\(", body)
    return ["generated"] * len(generated) + ["library"] * len(library)


def count_flops(step: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def three_steps(name: str, args: argparse.Namespace) -> None:
    step = make_step(name, args)
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
    parser.add_argument("--uncompiled", action="store_true", help="with --compile: each contender uncompiled, too")
    parser.add_argument("--compile_mode", choices=("default", "reduce-overhead", "max-autotune"), default="default")
    parser.add_argument("--compile_backend", default="inductor")
    parser.add_argument("--matrix_size", type=int, help="side of the matrix product; 8192 on a GPU, 4096 on a CPU")
    parser.add_argument("--memory", action="store_true", help="measure peak memory instead of time")
    parser.add_argument("--counts", action="store_true", help="count operators instead")
    parser.add_argument("--profile", action="store_true", help="time by operator of the slowest contender instead")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    add_common_arguments(parser, rounds=10)
    return parser.parse_args()


def main() -> None:
    args = parse()
    if args.child is not None:
        print(json.dumps(peak_memory(args.device, lambda: three_steps(args.child, args))))
        return
    names = [PEER, *(f"C2FMAE {ratio} {kind}" for ratio in args.prediction_ratios for kind in args.attention)]
    if args.compile:
        names = [*(names if args.uncompiled else []), *(name + COMPILED for name in names)]
    if args.counts:
        report(args, [count(name, args) for name in names], settings=describe(args))
        return
    if args.memory:
        rows = []
        for name in names:
            command = [sys.executable, *sys.argv, "--child", name]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            rows.append({"contender": name, "peak memory, MiB": float(output.splitlines()[-1])})
        report(args, [{**row, "of the peer's": row["peak memory, MiB"] / rows[0]["peak memory, MiB"]} for row in rows])
        return

    steps, peaks = {}, {}
    for name in names:
        steps[name], peaks[name] = measured_step(name, args)
    if args.profile:
        seconds = in_turns(steps, 1, args.warmup, args.device)
        profile(max(seconds, key=lambda name: seconds[name][0]), steps, args)
        return
    flops = {name: count_flops(make_step(name.removesuffix(COMPILED), args)) for name in names}
    size = args.matrix_size or (8192 if args.device.startswith("cuda") else 4096)
    rate = matrix_rate(args.device, getattr(torch, args.dtype), size)
    speeds = compare(in_turns(steps, args.rounds, args.warmup, args.device), args.batch_size, names[0])
    rows = [
        {
            "contender": name,
            "images/s": speed["per_second"],
            "slowest": speed["slowest"],
            "fastest": speed["fastest"],
            f"times {PEER}": speed["times_peer"],
            "GFLOP an image": flops[name] / args.batch_size / 1e9,
            "share of the matrix rate, %": 100 * speed["per_second"] * flops[name] / args.batch_size / rate,
            **({} if peaks[name] is None else {"peak memory, MiB": peaks[name]}),
        }
        for name, speed in speeds.items()
    ]
    report(args, rows, settings=describe(args), matrix_gflops_per_second=round(rate / 1e9, 1))


def measured_step(name: str, args: argparse.Namespace) -> tuple[Callable[[], float], float | None]:
    """A contender's step, run twice, and on a GPU the peak of what it allocated, in MiB."""
    on_gpu = args.device.startswith("cuda")
    before = torch.cuda.memory_allocated() if on_gpu else 0
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    step = make_step(name, args)
    for _ in range(2):
        step()
    return step, (torch.cuda.max_memory_allocated() - before) / 2**20 if on_gpu else None


def profile(name: str, steps: dict[str, Callable[[], float]], args: argparse.Namespace) -> None:
    with torch.profiler.profile() as profiler:
        steps[name]()
        synchronize(args.device)
    on_gpu = args.device.startswith("cuda")
    key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    kind = torch.autograd.DeviceType.CUDA if on_gpu else torch.autograd.DeviceType.CPU
    events = sorted(profiler.key_averages(), key=lambda event: -getattr(event, key))
    total = sum(getattr(event, key) for event in events)
    rows = [
        {"operator": event.key, "calls": event.count, "ms": getattr(event, key) / 1e3}
        for event in events[:25]
        if total
    ]
    launched = sum(event.count for event in events if event.device_type == kind)
    report(args, rows, settings=describe(args), contender=name, total_ms=total / 1e3, kernels_or_operators=launched)


def describe(args: argparse.Namespace) -> str:
    return (
        f"{args.size}, batch {args.batch_size}, {args.image_size} px, {args.dtype}, {args.classes} classes, compiled: "
        f"{args.compile and f'{args.compile_backend}, {args.compile_mode}'}"
    )


if __name__ == "__main__":
    main()
