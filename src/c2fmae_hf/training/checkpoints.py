"""Runs that can be killed, moved and resumed: checkpoints that are whole, in folders that no other run writes to."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import signal
import socket
import threading
from collections.abc import Collection, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput, get_last_checkpoint

from ..utils.files import sync_folder, sync_tree, write_json


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)
STAGING_FOLDER = ".checkpoint-being-written"
LOCK_FILE = ".being-written-by"
MANIFEST_FILE = "files.json"


class DurableTrainer(Trainer):
    """
    A `Trainer` for runs that are killed and moved:

    - Checkpoints take their names when all processes have written all of theirs to the disk, so that a half-written
      one is never resumed from, by whatever looks for `checkpoint-*`. What a killed process leaves is in the folder
      `.checkpoint-being-written` and is removed by the next save.
    - A checkpoint lists its files: one that was copied in part is refused.
    - The last checkpoint of this run is always kept, whatever the files' times say.
    - A finished run that is resumed trains nothing more.
    - While it trains, no other run may write to `output_dir`.
    - At SIGTERM it saves a checkpoint at the end of the step, and then ends as the signal asks.
    """

    _staging = False

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """
        As in transformers.

        Raises:
            `ValueError`: if not all of the checkpoint is there.
            `RuntimeError`: if another run writes to `output_dir`.
            `OSError`: if `output_dir` cannot be written to.
        """
        folder = Path(str(self.args.output_dir))
        if resume_from_checkpoint is True:
            resume_from_checkpoint = get_last_checkpoint(str(folder)) or True
        termination = Termination()
        callback = SaveAtTermination(self, termination)
        with locked(folder) if self.args.should_save else contextlib.nullcontext(), termination:
            if isinstance(resume_from_checkpoint, str):
                check_checkpoint(resume_from_checkpoint)
            self._begin_run(resume_from_checkpoint if isinstance(resume_from_checkpoint, str) else None)
            self.add_callback(callback)
            try:
                output = super().train(resume_from_checkpoint, *args, **kwargs)
            finally:
                self.remove_callback(callback)
            self._end_run()
        if termination.is_asked:
            logger.warning(f"SIGTERM: saved {PREFIX_CHECKPOINT_DIR}-{self.state.global_step} in {folder}, ending")
            os.kill(os.getpid(), signal.SIGTERM)
        return output

    def _begin_run(self, checkpoint: str | None) -> None:
        """For subclasses: what is to be done before training, when the folder is this run's."""

    def _end_run(self) -> None:
        """For subclasses: what is to be done after training that came to its end."""

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # The library asks after a step only.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """
        As in transformers, but it publishes nothing, and files take the places of earlier ones when all are written.
        """
        if _internal_call:  # of a checkpoint
            super().save_model(output_dir, _internal_call=True)
            return
        folder = Path(output_dir or str(self.args.output_dir))
        temporary = folder.with_name(f".{folder.name}.being-written")
        if self.args.should_save:
            shutil.rmtree(temporary, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        try:
            super().save_model(str(temporary), _internal_call=True)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                sync_tree(temporary)
                folder.mkdir(parents=True, exist_ok=True)
                for path in temporary.iterdir():
                    os.replace(path, folder / path.name)
                sync_folder(folder)
        finally:
            if self.args.should_save:
                shutil.rmtree(temporary, ignore_errors=True)

    def _get_output_dir(self, trial: Any) -> str:
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, STAGING_FOLDER) if self._staging else folder

    def _add_to_checkpoint(self, folder: Path) -> None:
        """For subclasses: write further files into a checkpoint, in the process that saves."""

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        self._save_as(name, model, trial)
        if self.args.should_save:
            best = self.state.best_model_checkpoint
            kept = {name, *([Path(best).name] if best else [])}
            rotate(Path(self._get_output_dir(trial)), self.args.save_total_limit, self.state.global_step, kept)
        self.accelerator.wait_for_everyone()

    def _save_as(self, name: str, model: nn.Module, trial: Any = None) -> None:
        """Save all that a run needs as a folder of this name, which takes the place of an earlier one."""
        folder = Path(self._get_output_dir(trial))
        staging = folder / STAGING_FOLDER
        written = staging / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        saves = self.args.should_save
        if saves:
            shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._staging = True
        try:
            super()._save_checkpoint(model, trial)
        except Exception as error:  # of the disk, in the words of whatever wrote
            if not saves:
                raise
            free = shutil.disk_usage(folder).free >> 20
            shutil.rmtree(staging, ignore_errors=True)  # perhaps it fills the disk
            raise OSError(f"{folder / name}: cannot be written, with {free} MiB free: {error}") from error
        finally:
            self._staging = False
        self.accelerator.wait_for_everyone()
        best = folder / f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
        if self.state.best_global_step and (best.exists() or best.name == name):
            self.state.best_model_checkpoint = str(best)  # where it will be, not where it was written
        if saves:
            self._add_to_checkpoint(written)
            self.state.save_to_json(str(written / TRAINER_STATE_NAME))
            write_json(written / MANIFEST_FILE, sizes_of_files(written))
            sync_tree(written)
            if (folder / name).exists():  # of an earlier run, whose files would mingle with these
                os.replace(folder / name, staging / "replaced")
            os.replace(written, folder / name)
            sync_folder(folder)
            shutil.rmtree(staging)
        self.accelerator.wait_for_everyone()


def rotate(folder: Path, limit: int | None, step: int, kept: Collection[str]) -> None:
    """
    Delete the oldest checkpoints until `limit` are left, but for those of the names `kept`. Those of later steps than
    `step` are of a run that was given up, and count as the oldest. Times of files are not asked: they are another
    machine's.
    """
    if not limit or limit <= 0:
        return
    found = []
    for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        match = re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", path.name)
        if match and path.is_dir():
            found.append((int(match[1]) <= step, int(match[1]), path))
    surplus = len(found) - limit
    for _, _, path in sorted(found):
        if surplus > 0 and path.name not in kept:
            shutil.rmtree(path)
            surplus -= 1


def sizes_of_files(folder: Path) -> dict[str, int]:
    """Bytes of all files in a folder, to its depths, by their names in it."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST_FILE)
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(files)}


def check_checkpoint(checkpoint: str | os.PathLike) -> None:
    """
    Raises:
        `ValueError`: if not all files of a checkpoint are there, as after a copy that was cut off; names what is
            missing and the last checkpoint beside it that is whole.
    """
    folder = Path(checkpoint)
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected the folder of a checkpoint, found none")
    missing = _missing_from(folder)
    if not missing:
        return
    steps = {path: re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", path.name) for path in folder.parent.iterdir()}
    whole = [(int(match[1]), path) for path, match in steps.items() if match and not _missing_from(path)]
    advice = f", or resume from {max(whole)[1]}" if whole else ""
    raise ValueError(
        f"{folder}: expected a whole checkpoint, but {', '.join(missing)}; it was copied in part, or not written by "
        f"this package. Copy it again{advice}"
    )


def _missing_from(folder: Path) -> list[str]:
    try:
        listed = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return [f"{MANIFEST_FILE}, which lists its files, is not there or damaged"]
    there = sizes_of_files(folder)
    return [
        f"{name} has {there[name]} of {size} bytes" if name in there else f"{name} is not there"
        for name, size in listed.items()
        if there.get(name) != size
    ]


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """
    Keep other runs from writing to a folder, which is made if it is not there: on this machine, and on others if the
    file system shares locks. A process that is killed leaves the folder free.

    Raises:
        `RuntimeError`: if another run holds it.
        `OSError`: if it cannot be written to.
    """
    path = folder / LOCK_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115
    except OSError as error:
        raise OSError(f"output_dir {folder}: cannot be written to: {error}") from error
    with file:
        if fcntl is not None:
            try:
                # Not flock, which a data-loading worker inherits and keeps for seconds when its parent is killed.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                file.seek(0)
                raise RuntimeError(
                    f"output_dir {folder}: another run is writing to it, {file.read().strip() or 'just begun'}. Wait "
                    "for its end, or choose another output_dir"
                ) from None
            except OSError as error:  # file systems without locks
                logger.warning(f"{folder}: cannot be locked ({error}); let no other run write to it")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


class Termination:
    """While it is entered, in the main thread: whether SIGTERM came, which is held back. Children die of it still."""

    def __init__(self) -> None:
        self.is_asked = False
        self._before: Any = None

    def __enter__(self) -> Termination:
        if threading.current_thread() is threading.main_thread():
            self._process = os.getpid()
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: Any) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() == self._process:
            self.is_asked = True
            return
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a worker, forked with this handler
        os.kill(os.getpid(), number)


class SaveAtTermination(TrainerCallback):
    """Ends training with a checkpoint after a step in which SIGTERM came to any of the processes."""

    def __init__(self, trainer: Trainer, termination: Termination) -> None:
        self.trainer, self.termination = trainer, termination

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        accelerator = self.trainer.accelerator
        if accelerator.num_processes > 1:
            asked = torch.tensor(float(self.termination.is_asked), device=args.device)
            self.termination.is_asked = bool(accelerator.reduce(asked, reduction="sum") > 0)
        if self.termination.is_asked:
            control.should_save = control.should_training_stop = True


__all__ = ["MANIFEST_FILE", "STAGING_FOLDER", "DurableTrainer", "check_checkpoint"]
