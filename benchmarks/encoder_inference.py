"""
Speed of features: C2FMAE's encoder, timm's and transformers' ViT of the same size with the same weights, in turns.

    python benchmarks/encoder_inference.py
    python benchmarks/encoder_inference.py --size large --device cuda --dtype bfloat16 --batch_sizes 1 64 256 --compile
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from common import add_common_arguments, compare, in_turns, report
from torch import nn

from c2fmae_hf import SIZES, C2FMAEConfig, C2FMAEModel
from c2fmae_hf.interop.conversion import convert_from_c2fmae


PEER = "timm"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="base")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--compile", action="store_true")
    add_common_arguments(parser, rounds=10)
    args = parser.parse_args()

    torch.manual_seed(0)
    config = C2FMAEConfig.from_size(args.size)
    encoder = C2FMAEModel(config).eval()
    peer = convert_from_c2fmae(encoder, "timm")
    vit = convert_from_c2fmae(encoder, "vit")
    models: dict[str, nn.Module] = {PEER: peer, "transformers ViT": vit, "C2FMAE": encoder}

    def features(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
        outputs: Any = model.forward_features(images) if model is peer else model(images)  # type: ignore[operator]
        return outputs if model is peer else outputs.last_hidden_state

    with torch.inference_mode():
        images = torch.randn(2, 3, *config.image_height_width)
        values = [features(model, images) for model in models.values()]
        difference = max((value - values[0]).abs().max().item() for value in values)
        rows = []
        dtype = getattr(torch, args.dtype)
        for model in models.values():
            model.to(args.device, dtype)
        for batch_size in args.batch_sizes:
            images = torch.randn(batch_size, 3, *config.image_height_width, device=args.device, dtype=dtype)
            contenders: dict[str, Callable[[], torch.Tensor]] = {}
            for name, model in models.items():
                function = torch.compile(features) if args.compile else features
                contenders[name] = lambda function=function, model=model, images=images: function(model, images)
            speeds = compare(in_turns(contenders, args.rounds, args.warmup, args.device), batch_size, PEER)
            rows += [
                {
                    "batch": batch_size,
                    "model": name,
                    "images/s": speed["per_second"],
                    "slowest": speed["slowest"],
                    "fastest": speed["fastest"],
                    "times timm": speed["times_peer"],
                }
                for name, speed in speeds.items()
            ]
    settings = f"{args.size}, {args.dtype}, {config.image_height_width[0]} px"
    report(args, rows, settings=settings, compiled=args.compile, largest_difference_of_features=difference)


if __name__ == "__main__":
    main()
