"""Checkpoints that are there whole or not at all: transformers writes them in place, file by file."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from torch import nn
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from .files import sync_folder, sync_tree


STAGING_FOLDER = ".checkpoint-being-written"


class DurableTrainer(Trainer):
    """
    A `Trainer` whose checkpoints take their names when all processes have written all of theirs to the disk, so that a
    half-written one is never resumed from, by whatever looks for `checkpoint-*`. What a killed process leaves is in
    the folder `.checkpoint-being-written` and is removed by the next save.
    """

    _staging = False

    def _get_output_dir(self, trial: Any) -> str:
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, STAGING_FOLDER) if self._staging else folder

    def _add_to_checkpoint(self, folder: Path) -> None:
        """For subclasses: write further files into a checkpoint, in the process that saves."""

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial))
        staging = folder / STAGING_FOLDER
        saves = self.args.should_save
        if saves:
            shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._staging = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._staging = False
        self.accelerator.wait_for_everyone()
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        best = folder / f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
        if self.state.best_global_step and (best.exists() or best.name == name):
            self.state.best_model_checkpoint = str(best)  # where it will be, not where it was written
        if saves:
            self._add_to_checkpoint(staging / name)
            self.state.save_to_json(str(staging / name / TRAINER_STATE_NAME))
            sync_tree(staging / name)
            if (folder / name).exists():  # of an earlier run, whose files would mingle with these
                os.replace(folder / name, staging / "replaced")
            os.replace(staging / name, folder / name)
            sync_folder(folder)
            shutil.rmtree(staging)
            rotate_checkpoints(
                output_dir=str(folder),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )
        self.accelerator.wait_for_everyone()


__all__ = ["STAGING_FOLDER", "DurableTrainer"]
