"""
A training run that kills itself (SIGKILL: no clean-up of any kind) at a given moment, and goes on from the last
checkpoint when it is started again; for `test_kill_and_resume.py`.

    python tests/killed_run.py FOLDER map|stream WORKERS ACCUMULATION MOMENT

MOMENT is `never`, or `SIGTERM-K` (or another signal, to the process), `group_SIGTERM-K` (to its group: workers, too),
`saving_SIGTERM-K` and `evaluating_SIGTERM-K` (to the group, in the middle of it), `step-K`, `evaluation-K` (in the
middle of it), `checkpoint-K` (weights are written, the optimizer is not), `rename-K` (all is written, under its
temporary name) or `end-K` (the last checkpoint is there, and the run goes on to its end). Prints the fingerprint of
the final weights and the losses of every step.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint


sys.path.insert(0, str(Path(__file__).resolve().parent))

import c2fmae_hf.training.checkpoints
from c2fmae_hf.publishing.fingerprints import weights_fingerprint
from test_trainer import make_trainer
from testing_utils import make_rows, small_config


KEYS = (
    "step",
    "loss",
    "semantic_loss",
    "instance_loss",
    "image_loss",
    "masked_semantic",
    "masked_random",
    "grad_norm",
)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class DieAt(TrainerCallback):
    def __init__(self, kind: str, step: int) -> None:
        self.kind, self.step = kind, step

    def on_step_begin(self, args, state, control, **kwargs):
        if self.kind == "step" and state.global_step == self.step:
            die()
        if self.kind.startswith(("SIG", "group")) and state.global_step == self.step:
            self.send()

    def send(self) -> None:
        where, _, name = self.kind.rpartition("_")
        target = f"-{os.getpgrp()}" if where else str(os.getpid())
        subprocess.run(["kill", "-s", name.removeprefix("SIG"), "--", target], start_new_session=True, check=True)

    def on_prediction_step(self, args, state, control, **kwargs):
        if self.kind.startswith("evaluating") and state.global_step == self.step:
            self.send()
            self.step = -1
        if self.kind == "evaluation" and state.global_step == self.step:
            die()


def main(folder: str, source: str, num_workers: str, accumulation: str, max_steps: str, moment: str) -> None:
    kind, _, step = moment.partition("-")
    os.setpgrp()  # its workers and itself, whoever started it
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which `nohup` would have it ignore, as a background job SIGINT
    signal.signal(signal.SIGINT, signal.default_int_handler)
    die_at = DieAt(kind, int(step or -1))
    config = small_config(drop_path_rate=0.1, decoder_prediction_ratio=0.5)
    trainer = make_trainer(
        config,
        make_rows(22),
        folder,
        streaming=source == "stream",
        num_shards=4,
        callbacks=[die_at],
        max_steps=int(max_steps),
        gradient_accumulation_steps=int(accumulation),
        per_device_train_batch_size=2,
        dataloader_num_workers=int(num_workers),
        eval_strategy="steps",
        eval_steps=4,
        save_strategy="steps",
        save_steps=3,
        save_total_limit=2,
        lr_scheduler_type="constant_with_warmup",  # a step too many would change the weights
    )
    if kind.startswith("saving"):
        save = trainer._save_optimizer_and_scheduler

        def save_and_send(output_dir: str) -> None:
            if trainer.state.global_step == int(step):
                die_at.send()
            save(output_dir)

        trainer._save_optimizer_and_scheduler = save_and_send
    if kind == "checkpoint":
        save = trainer._save_optimizer_and_scheduler

        def save_or_die(output_dir: str) -> None:
            if trainer.state.global_step == int(step):
                die()
            save(output_dir)

        trainer._save_optimizer_and_scheduler = save_or_die
    if kind == "rename":
        sync = c2fmae_hf.training.checkpoints.sync_tree

        def sync_or_die(path: Path) -> None:
            sync(path)
            if trainer.state.global_step == int(step):
                die()

        c2fmae_hf.training.checkpoints.sync_tree = sync_or_die
    if kind == "end":
        trainer._end_run = die
    trainer.train(resume_from_checkpoint=get_last_checkpoint(folder) if os.path.isdir(folder) else None)
    losses = [[entry[key] for key in KEYS] for entry in trainer.state.log_history if "loss" in entry]
    print(json.dumps({"weights": weights_fingerprint(trainer.model), "losses": losses}))


if __name__ == "__main__":
    main(*sys.argv[1:])
