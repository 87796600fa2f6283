"""A trainer whose runs can be killed and resumed: complete checkpoints, and a lock on the output folder."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import math
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sized
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from filelock import FileLock, Timeout
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput, get_last_checkpoint, rotate_checkpoints
from transformers.utils import SAFE_WEIGHTS_NAME

from ..publishing.licences import carry_license
from ..timm_c2fmae import tell_timm
from ..utils.files import file_sha256, read_json, sync_folder, sync_tree, write_json


logger = logging.getLogger(__name__)
STAGING_FOLDER = ".checkpoint-being-written"
LOCK_FILE = ".lock"
MANIFEST_FILE = "files.json"
SETTINGS_FILE = "settings.json"
# File types that a resumed run reads.
_CHECKED = (".safetensors", ".bin", ".pt", ".pth", ".distcp", ".json")
# Arguments of transformers that affect training, and fields of a model's configuration that do not.
_ARGUMENTS = (
    *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "max_steps", "num_train_epochs"),
    *("weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "optim", "label_smoothing_factor"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "bf16", "fp16", "torch_compile"),
)
_NO_SETTINGS = ("transformers_version", "architectures", "dtype", "torch_dtype", "_name_or_path")
# Data-loading workers inherit the lock, and take up to 5 seconds to notice that their parent was killed.
LOCK_SECONDS = 10
# Sent by schedulers, by Ctrl-C and by a terminal that is closed; Windows has no SIGHUP.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))


class DurableTrainer(Trainer):
    """
    A `Trainer` for runs that are killed and resumed:

    - A checkpoint gets its name only when all processes have written their files to disk. Until then it is in the
      folder `.checkpoint-being-written`, which the next run removes.
    - A checkpoint lists its files and their checksums in `files.json`. An incomplete or changed checkpoint is refused.
    - A run resumed with other settings than in `settings.json` logs each changed setting, old and new.
    - Resuming a finished run trains no further step.
    - During training no other run can use the same `output_dir`.
    - After SIGTERM, SIGINT (Ctrl-C) or SIGHUP, to the process or its group, the run finishes the step, saves a
      checkpoint and then ends by that signal.
    """

    def train(
        self, resume_from_checkpoint: str | os.PathLike | bool | None = None, *args: Any, **kwargs: Any
    ) -> TrainOutput:
        """
        As in transformers.

        Raises:
            `ValueError`: if files of the checkpoint are missing or damaged, or processes found different ones.
            `RuntimeError`: if another run writes to `output_dir`.
        """
        folder = Path(str(self.args.output_dir))
        resume: Any = resume_from_checkpoint
        if resume is True:
            resume = get_last_checkpoint(str(folder)) or True
        checkpoint = os.fspath(resume) if resume and resume is not True else None
        chosen = gather_object([None if checkpoint is None else Path(checkpoint).name])
        if len(set(chosen)) > 1:
            raise ValueError(
                f"resume_from_checkpoint: expected the same in every process, as they share output_dir, got {chosen}"
            )
        self._count_steps()
        callback = CheckpointCallback(self)
        with locked(folder) if self.args.should_save else contextlib.nullcontext(), record_signals(callback):
            if checkpoint is not None:
                check_checkpoint(checkpoint)
                self._compare_settings(Path(checkpoint))
            if self.args.should_save:
                shutil.rmtree(folder / STAGING_FOLDER, ignore_errors=True)
                self._check_room(folder)
            self._begin_run(checkpoint)
            # First in the list: later callbacks, such as those that upload it, look for the finished checkpoint.
            self.callback_handler.callbacks.insert(0, callback)
            try:
                output = super().train(checkpoint or resume, *args, **kwargs)
            finally:
                self.remove_callback(callback)
            self._end_run()
        if callback.received is not None:
            name = signal.Signals(callback.received).name
            logger.warning(f"{name}: saved {PREFIX_CHECKPOINT_DIR}-{self.state.global_step} in {folder}, stopping")
            os.kill(os.getpid(), callback.received)
        return output

    def _count_steps(self) -> None:
        """Turn shares of the run into steps now: a resumed run compares them with the steps in its checkpoint."""
        args = self.args
        names = [name for name in ("logging_steps", "eval_steps", "save_steps") if 0 < (getattr(args, name) or 0) < 1]
        if not names:
            return
        steps = args.max_steps
        if steps <= 0:
            batches = len(self.get_train_dataloader()) / args.gradient_accumulation_steps
            steps = math.ceil(args.num_train_epochs * math.ceil(batches))
        for name in names:
            setattr(args, name, max(math.ceil(steps * getattr(args, name)), 1))

    def _check_room(self, folder: Path) -> None:
        """
        Raises:
            `OSError`: if the disk has no room for one checkpoint (the weights and AdamW's two moments).
        """
        parameters = list(self.accelerator.unwrap_model(self.model).parameters())
        needed = sum(p.numel() * p.element_size() * (3 if p.requires_grad else 1) for p in parameters)
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise OSError(
                f"output_dir {folder}: expected room for a checkpoint, {needed / 1e9:.2f} GB, got {free / 1e9:.2f} GB "
                "free. Free disk space, or choose another output_dir"
            )

    def _settings(self) -> dict[str, Any]:
        """The arguments and configuration fields that affect training, ready for JSON."""
        config = getattr(self.accelerator.unwrap_model(self.model), "config", None)
        settings = (
            {name: value for name, value in config.to_dict().items() if name not in _NO_SETTINGS} if config else {}
        )
        own = {one.name for one in fields(self.args)} - {one.name for one in fields(TrainingArguments)}
        settings.update({name: getattr(self.args, name) for name in (*_ARGUMENTS, *sorted(own))})
        settings["processes"] = self.args.world_size
        return json.loads(json.dumps(settings, default=str))

    def _compare_settings(self, checkpoint: Path) -> None:
        path = checkpoint / SETTINGS_FILE
        before, now = read_json(path) if path.is_file() else {}, self._settings()
        changed = [f"{name} {before[name]} -> {now[name]}" for name in now if before.get(name, now[name]) != now[name]]
        if changed:
            logger.warning(f"{checkpoint}: resuming with changed settings: {'; '.join(changed)}")

    def _begin_run(self, checkpoint: str | None) -> None:
        """Hook for subclasses: runs before training, once the output folder is locked."""

    def _end_run(self) -> None:
        """Hook for subclasses: runs after training that was not interrupted."""

    def _add_to_checkpoint(self, folder: Path) -> None:
        """Hook for subclasses, in all processes: those with `args.should_save` write more files into a checkpoint."""

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        # The library checks max_steps only after a step, so it would train a finished run for one more step.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return [], None
        return super().get_batch_samples(*args, **kwargs)

    def get_train_dataloader(self) -> DataLoader:
        """
        As in transformers.

        Raises:
            `ValueError`: if the rows do not fill one batch.
        """
        loader = super().get_train_dataloader()
        if isinstance(self.train_dataset, Sized) and len(loader) == 0:
            raise ValueError(
                "train_dataset: expected at least the rows of one batch, "
                f"{self.args.train_batch_size * self.args.world_size}, got {len(self.train_dataset)}, and "
                "dataloader_drop_last or torch_compile leave out an incomplete batch. Lower the batch size"
            )
        return shielded(loader)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """As in transformers, but `dataloader_drop_last`, which is for training, leaves out no row."""
        with self._keeping_all_rows():
            return shielded(super().get_eval_dataloader(eval_dataset))

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """As [`get_eval_dataloader`], for `predict`."""
        with self._keeping_all_rows():
            return shielded(super().get_test_dataloader(test_dataset))

    @contextlib.contextmanager
    def _keeping_all_rows(self) -> Iterator[None]:
        own, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            yield
        finally:
            self.args.dataloader_drop_last = own

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As in transformers, but saves the licence text too, and never publishes, even with `push_to_hub`."""
        super().save_model(output_dir, _internal_call=True)
        if self.args.should_save:
            folder = output_dir or str(self.args.output_dir)
            carry_license(self.accelerator.unwrap_model(self.model), folder)
            tell_timm(folder, self.processing_class)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_renamed(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._load_renamed(Path(str(self.state.best_model_checkpoint)))

    def _load_renamed(self, checkpoint: Path) -> None:
        """
        Load weights that a checkpoint has under other names. transformers saves ViT, DINOv2 and others under the names
        of earlier versions, and its trainer would leave these weights as they are.
        """
        model, file = self.accelerator.unwrap_model(self.model), checkpoint / SAFE_WEIGHTS_NAME
        is_sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        if is_sharded or not isinstance(model, PreTrainedModel) or not file.is_file():
            return
        if model.load_state_dict(load_file(file), strict=False).missing_keys:
            saved = type(model).from_pretrained(checkpoint, dtype=model.dtype)
            model.load_state_dict(saved.state_dict())

    def _get_output_dir(self, trial: Any) -> str:
        # The library writes a checkpoint here; `finish_checkpoint` moves it.
        self._staging = Path(super()._get_output_dir(trial)) / STAGING_FOLDER
        return str(self._staging)

    def finish_checkpoint(self, name: str) -> None:
        """Complete the checkpoint that was just written and give it its name. All processes must call this."""
        written = self._staging / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        final = self._staging.parent / name
        self.accelerator.wait_for_everyone()
        if self.state.best_model_checkpoint == str(written):
            self.state.best_model_checkpoint = str(final)
        self._add_to_checkpoint(written)
        if self.args.should_save:
            self.state.save_to_json(str(written / TRAINER_STATE_NAME))
            write_json(written / SETTINGS_FILE, self._settings())
            write_json(written / MANIFEST_FILE, describe_files(written))
            sync_tree(written)
            if final.exists():  # of an earlier run
                os.replace(final, self._staging / "replaced")
            os.replace(written, final)
            # The library deletes the oldest by time. Clocks of machines differ, so make this one the newest.
            others = (path.stat().st_mtime + 2 for path in final.parent.glob(f"{PREFIX_CHECKPOINT_DIR}-*"))
            os.utime(final, (max([time.time(), *others]),) * 2)
            sync_folder(final.parent)
            shutil.rmtree(self._staging)
        self.accelerator.wait_for_everyone()


class CheckpointCallback(TrainerCallback):
    """Names and rotates the checkpoints of a [`DurableTrainer`], and stops training after a signal to any process."""

    def __init__(self, trainer: DurableTrainer) -> None:
        self.trainer = trainer
        self.received: int | None = None

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._must_stop():
            control.should_save = control.should_training_stop = True

    on_evaluate = on_step_end

    def _must_stop(self) -> bool:
        if in_any_process(self.trainer.accelerator, self.received is not None):
            self.received = self.received or signal.SIGTERM
        return self.received is not None

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.trainer.finish_checkpoint(f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
        if args.should_save:
            folder = str(self.trainer._staging.parent)
            rotate_checkpoints(folder, args.save_total_limit, state.best_model_checkpoint, use_mtime=True)
        if self._must_stop():
            control.should_training_stop = True


def in_any_process(accelerator: Accelerator, flag: bool) -> bool:
    """Whether the flag is set in any process. All processes must call this."""
    if accelerator.num_processes == 1:
        return flag
    total = accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), reduction="sum")
    return bool(total > 0)


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Size in bytes and checksum of every file below a folder except `files.json`, by relative path."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST_FILE)
    return {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": file_sha256(path)}
        for path in sorted(files)
    }


def check_checkpoint(checkpoint: str | os.PathLike) -> None:
    """
    Check a checkpoint's files against its `files.json`.

    Raises:
        `ValueError`: if files are missing, incomplete (as after an interrupted copy) or damaged.
    """
    manifest = Path(checkpoint) / MANIFEST_FILE
    if not manifest.parent.is_dir():
        raise ValueError(f"{checkpoint}: expected the folder of a checkpoint, found no such folder")
    if not manifest.is_file():
        raise ValueError(f"{checkpoint}: expected a checkpoint of this package, got a folder without {MANIFEST_FILE}")
    advice = "Copy the checkpoint again, or resume from another one"
    files = read_json(manifest, f". {advice}")
    try:
        expected = {name: (file["size"], file["sha256"]) for name, file in files.items()}
    except (TypeError, KeyError):
        raise ValueError(
            f"{manifest}: expected the size and checksum of each file, got other content. {advice}"
        ) from None
    present = {path.relative_to(manifest.parent).as_posix() for path in manifest.parent.rglob("*") if path.is_file()}
    present = {name for name in present if name.endswith(_CHECKED)} - {MANIFEST_FILE}
    unlisted = sorted(present - expected.keys())
    if unlisted or TRAINER_STATE_NAME not in expected:
        names = unlisted or [TRAINER_STATE_NAME]
        raise ValueError(f"{manifest}: expected all files of the checkpoint, but {names[:5]} are not listed. {advice}")
    for name, (size, checksum) in expected.items():
        path = manifest.parent / name
        got = path.stat().st_size if path.is_file() else None
        if got != size:
            there = "no such file" if got is None else f"{got} bytes"
            raise ValueError(f"{checkpoint}: expected {name} with {size} bytes, got {there}. {advice}")
        if file_sha256(path) != checksum:
            raise ValueError(f"{checkpoint}: expected {name} as it was saved, got other content. {advice}")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """
    Lock a folder against other runs.

    Raises:
        `RuntimeError`: if another run holds the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK_FILE)
    try:
        lock.acquire(timeout=LOCK_SECONDS)
    except Timeout:
        raise RuntimeError(
            f"output_dir {folder}: another run is writing to it. Wait until it ends, or choose another output_dir"
        ) from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.unlink(lock.lock_file)
        lock.release()


@contextlib.contextmanager
def record_signals(callback: CheckpointCallback) -> Iterator[None]:
    """
    Record signals that ask the process to end in the callback, instead of ending at once; a second Ctrl-C interrupts
    immediately. Signals that the process was started to ignore, as by `nohup`, stay ignored. Does nothing outside the
    main thread, the only one that receives signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def record(number: int, frame: Any) -> None:
        if number == signal.SIGINT and callback.received is not None:
            raise KeyboardInterrupt
        callback.received = number

    handled = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, record) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def shielded(loader: DataLoader) -> DataLoader:
    """
    Let a loader's workers ignore signals that ask to end, unless the trainer sends them. Schedulers and terminals
    signal all processes of a group, and without its workers the trainer could not finish its step and save. On systems
    that do not say who sent a signal (macOS), SIGTERM still ends workers.
    """
    inner = getattr(loader, "base_dataloader", loader)  # accelerate wraps the loader
    inner.worker_init_fn = functools.partial(_ignore_signals, inner.worker_init_fn)
    return loader


def _ignore_signals(then: Callable[[int], None] | None, worker: int) -> None:
    for number in set(SIGNALS) - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if hasattr(signal, "sigwaitinfo") and parent is not None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_on_sigterm_of, args=(parent.pid,), daemon=True).start()
    if then is not None:
        then(worker)


def _end_on_sigterm_of(parent: int) -> None:
    """End this worker when its parent sends SIGTERM, which is how loaders stop their workers."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


__all__ = ["MANIFEST_FILE", "STAGING_FOLDER", "DurableTrainer", "check_checkpoint"]
