"""Runs that can be killed and resumed: checkpoints that appear whole, in a folder that no other run writes to."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from filelock import FileLock, Timeout
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput, get_last_checkpoint, rotate_checkpoints

from ..utils.files import sync_folder, sync_tree, write_json


logger = logging.getLogger(__name__)
STAGING_FOLDER = ".checkpoint-being-written"
LOCK_FILE = ".lock"
MANIFEST_FILE = "files.json"
# Data-loading workers inherit the lock, and notice within 5 seconds that their parent was killed.
LOCK_SECONDS = 10


class DurableTrainer(Trainer):
    """
    A `Trainer` for runs that are killed and resumed:

    - A checkpoint gets its name when all processes have written their files to the disk. Until then it is in the
      folder `.checkpoint-being-written`, which the next run removes.
    - A checkpoint lists its files in `files.json`; one that was copied in part is refused.
    - A finished run that is resumed trains no further step.
    - While it trains, no other run can train into `output_dir`.
    - After SIGTERM it finishes the step, saves a checkpoint and then ends as the signal asks.
    """

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """
        As in transformers.

        Raises:
            `ValueError`: if files of the checkpoint are missing.
            `RuntimeError`: if another run writes to `output_dir`.
        """
        folder = Path(str(self.args.output_dir))
        if resume_from_checkpoint is True:
            resume_from_checkpoint = get_last_checkpoint(str(folder)) or True
        checkpoint = resume_from_checkpoint if isinstance(resume_from_checkpoint, str) else None
        callback = CheckpointCallback(self)
        with locked(folder) if self.args.should_save else contextlib.nullcontext(), noted_sigterm(callback):
            if checkpoint is not None:
                check_checkpoint(checkpoint)
            if self.args.should_save:
                shutil.rmtree(folder / STAGING_FOLDER, ignore_errors=True)
            self._begin_run(checkpoint)
            # Before callbacks that look for the checkpoint, such as those that upload it.
            self.callback_handler.callbacks.insert(0, callback)
            try:
                output = super().train(resume_from_checkpoint, *args, **kwargs)
            finally:
                self.remove_callback(callback)
            self._end_run()
        if callback.is_sigterm:
            logger.warning(f"SIGTERM: saved {PREFIX_CHECKPOINT_DIR}-{self.state.global_step} in {folder}, ending")
            os.kill(os.getpid(), signal.SIGTERM)
        return output

    def _begin_run(self, checkpoint: str | None) -> None:
        """Hook for subclasses: runs before training, in a folder that is this run's alone."""

    def _end_run(self) -> None:
        """Hook for subclasses: runs after training that was not interrupted."""

    def _add_to_checkpoint(self, folder: Path) -> None:
        """Hook for subclasses: writes further files into a checkpoint, in the process that saves."""

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        # The library compares with max_steps after a step only, and would train a finished run by one step more.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return [], None
        return super().get_batch_samples(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As in transformers, but with `push_to_hub` it publishes nothing."""
        super().save_model(output_dir, _internal_call=True)

    def _get_output_dir(self, trial: Any) -> str:
        # Where the library writes a checkpoint; `finish_checkpoint` moves it.
        self._staging = Path(super()._get_output_dir(trial)) / STAGING_FOLDER
        return str(self._staging)

    def finish_checkpoint(self, name: str) -> None:
        """Complete the checkpoint that was just written and give it its name, in all processes."""
        written = self._staging / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        final = self._staging.parent / name
        self.accelerator.wait_for_everyone()
        if self.state.best_model_checkpoint == str(written):
            self.state.best_model_checkpoint = str(final)
        if self.args.should_save:
            self._add_to_checkpoint(written)
            self.state.save_to_json(str(written / TRAINER_STATE_NAME))
            write_json(written / MANIFEST_FILE, sizes_of_files(written))
            sync_tree(written)
            if final.exists():  # of an earlier run
                os.replace(final, self._staging / "replaced")
            os.replace(written, final)
            # The library keeps the latest by time: this one is, whatever the clock of another machine said.
            others = (path.stat().st_mtime + 2 for path in final.parent.glob(f"{PREFIX_CHECKPOINT_DIR}-*"))
            os.utime(final, (max([time.time(), *others]),) * 2)
            sync_folder(final.parent)
            shutil.rmtree(self._staging)
        self.accelerator.wait_for_everyone()


class CheckpointCallback(TrainerCallback):
    """Names and rotates the checkpoints of a [`DurableTrainer`], and ends training after SIGTERM to any process."""

    def __init__(self, trainer: DurableTrainer) -> None:
        self.trainer = trainer
        self.is_sigterm = False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.is_sigterm = in_any_process(self.trainer.accelerator, self.is_sigterm)
        if self.is_sigterm:
            control.should_save = control.should_training_stop = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.trainer.finish_checkpoint(f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
        if args.should_save:
            folder = str(self.trainer._staging.parent)
            rotate_checkpoints(folder, args.save_total_limit, state.best_model_checkpoint, use_mtime=True)


def in_any_process(accelerator: Accelerator, flag: bool) -> bool:
    """Whether the flag is set in any process; all of them must call this."""
    if accelerator.num_processes == 1:
        return flag
    total = accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), reduction="sum")
    return bool(total > 0)


def sizes_of_files(folder: Path) -> dict[str, int]:
    """Size in bytes of every file below a folder, by its path in the folder; without `files.json`."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST_FILE)
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(files)}


def check_checkpoint(checkpoint: str | os.PathLike) -> None:
    """
    Raises:
        `ValueError`: if files of a checkpoint are missing or too short, as after an interrupted copy.
    """
    manifest = Path(checkpoint) / MANIFEST_FILE
    if not manifest.parent.is_dir():
        raise ValueError(f"{checkpoint}: expected the folder of a checkpoint, found none")
    if not manifest.is_file():
        raise ValueError(f"{checkpoint}: expected a checkpoint of this package, got a folder without {MANIFEST_FILE}")
    there = sizes_of_files(manifest.parent)
    for name, size in json.loads(manifest.read_text(encoding="utf-8")).items():
        if there.get(name) != size:
            raise ValueError(
                f"{checkpoint}: expected {name} with {size} bytes, got {there.get(name, 'no such file')}. Copy the "
                "checkpoint again, or resume from another one"
            )


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """
    Keep other runs from training into a folder.

    Raises:
        `RuntimeError`: if another run holds the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK_FILE)
    try:
        lock.acquire(timeout=LOCK_SECONDS)
    except Timeout:
        raise RuntimeError(
            f"output_dir {folder}: another run is writing to it. Wait for its end, or choose another output_dir"
        ) from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.unlink(lock.lock_file)
        lock.release()


@contextlib.contextmanager
def noted_sigterm(callback: CheckpointCallback) -> Iterator[None]:
    """Tell the callback of a SIGTERM instead of ending the process; in the main thread, which alone gets signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(*_: Any) -> None:
        callback.is_sigterm = True

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


__all__ = ["MANIFEST_FILE", "STAGING_FOLDER", "DurableTrainer", "check_checkpoint"]
