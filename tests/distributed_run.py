"""
A training run for `torchrun`, or of one process; for `test_distributed.py`.

    torchrun --nproc_per_node 2 tests/distributed_run.py OUTPUT '{"max_steps": 6}' [--stream] [--resume]
        [--rows 16] [--fault loss|gradient] [--terminate 2] [--apart]

A fault is what the last process meets in its third batch: pixels whose loss, or whose gradient alone, is not finite.
With --apart, each process has a folder of its own in OUTPUT, as on machines that share none.
With --terminate, the first process sends SIGTERM to torchrun's group, its own and its workers', in that step.
Writes `rank-<n>.json` for each process: the images and masks of every batch that it trained on, and, in the first, the
logged losses; and `weights.safetensors`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint


sys.path.insert(0, str(Path(__file__).resolve().parent))

from c2fmae_hf.data.data_collator import decode_image_ids
from c2fmae_hf.data.streaming import C2FMAEIterableDataset
from c2fmae_hf.data.transforms import evaluation_transform
from test_trainer import FaultyGradient, make_trainer
from testing_utils import make_rows, small_config


# All patches are decoded: which ones a part has is drawn in each process.
CONFIG = small_config(decoder_prediction_ratio=1.0)


class Terminate(TrainerCallback):
    """As a scheduler does: SIGTERM to every process of a job."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            for group in (os.getpgid(os.getppid()), os.getpgrp()):  # torchrun's, and that which it gave this process
                os.killpg(group, signal.SIGTERM)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("arguments", type=json.loads)
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--fault", choices=("loss", "gradient"))
    parser.add_argument("--terminate", type=int)
    parser.add_argument("--apart", action="store_true")
    options = parser.parse_args()
    if options.apart:
        options.output = options.output / os.environ.get("RANK", "0")
        options.output.mkdir(parents=True, exist_ok=True)
    trainer = make_trainer(
        CONFIG, make_rows(options.rows), options.output, streaming=options.stream, **options.arguments
    )
    if options.stream:  # three rows for the first process, two for the second: in two batches, and in one
        trainer.eval_dataset = C2FMAEIterableDataset(
            trainer.eval_dataset.rows.to_iterable_dataset(), evaluation_transform(CONFIG.image_height_width)
        )
    else:
        trainer.eval_dataset.rows = trainer.eval_dataset.rows.select(range(4))
    if options.fault and trainer.args.process_index == trainer.args.world_size - 1:

        def spoil(module, inputs, output):
            if len(batches) < 3:
                return output
            return FaultyGradient.apply(output) if options.fault == "gradient" else output * float("inf")

        trainer.model.decoder.stages["image"].head.register_forward_hook(spoil)
    if options.terminate is not None and trainer.args.process_index == 0:
        trainer.add_callback(Terminate(options.terminate))
    batches: list[dict] = []
    compute_loss = trainer.compute_loss

    def watched(model, inputs, *args, **kwargs):
        if model.training:
            batches.append(
                {
                    "step": trainer.state.global_step,
                    "images": decode_image_ids(inputs["image_ids"]),
                    "masks": inputs["bool_masked_pos"].int().tolist(),
                }
            )
        return compute_loss(model, inputs, *args, **kwargs)

    trainer.compute_loss = watched
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(options.output)) if options.resume else None)
    metrics = trainer.evaluate()
    losses = [entry for entry in trainer.state.log_history if "loss" in entry]
    rank = trainer.args.process_index
    content = {"batches": batches, "losses": losses, "metrics": metrics}
    (options.output / f"rank-{rank}.json").write_text(json.dumps(content))
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if rank == 0:
        weights = {name: torch.as_tensor(value).clone() for name, value in state.items()}
        save_file(weights, options.output / "weights.safetensors")


if __name__ == "__main__":
    main()
