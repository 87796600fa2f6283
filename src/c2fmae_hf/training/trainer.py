"""The transformers Trainer with what pre-training adds: the order of samples, three logged losses, the encoder."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils.data import Dataset, Sampler
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput

from ..constants import GRANULARITIES, MASKING_STRATEGIES
from ..data.data_collator import DIAGNOSTICS, FALLBACK, DataCollatorForC2FMAE
from ..data.dataset import C2FMAEDataset
from ..data.progress import SharedProgress
from ..data.sampling import EpochSampler
from ..data.streaming import C2FMAEIterableDataset
from ..utils.files import replace_folder, text_sha256, write_json
from .callbacks import CurriculumCallback
from .non_finite import REPORT_FILE, UNSOUND_PREFIX, Watched, with_words_for_numbers
from .publishing_trainer import PublishingTrainer


logger = logging.getLogger(__name__)
STREAM_FILE = "stream_state.json"
IDENTITY_FILE = "run_identity.json"
_STREAM_FOLDER = ".stream"


class C2FMAETrainer(PublishingTrainer):
    """
    Pre-trains [`C2FMAEForPreTraining`] on a [`C2FMAEDataset`] or [`C2FMAEIterableDataset`].

    - The curriculum follows `global_step / max_steps` in every data-loading worker, and a resumed run continues it.
    - A streaming dataset goes on where the checkpoint's `stream_state.json` says, without reading all before it again.
    - Logs, and so `trainer_state.json`, hold each granularity's loss (means over the logged steps, images and
      processes), the curriculum's current probabilities, the share of images masked by each strategy, and, where bad
      rows are skipped, how many were since the run was started or resumed.
    - Norms, biases and tokens are not decayed. Weight decay, schedule and learning rate are the arguments'.
    - `push_to_hub` publishes in one commit, in the layout that timm loads too, with a card.
    - A loss or a gradient that is not finite stops the run before it reaches the weights: a checkpoint of them as they
      are, `non_finite.json` and a `FloatingPointError` that name the step, the granularity and the images. With
      float16, whose scaler skips such gradients, losses alone are watched. If the weights themselves are not finite,
      they are saved as `non-finite-<step>`, from which nothing resumes.
    - A checkpoint is resumed by its own run alone: with the same seed and rows.

    Args: those of [`~transformers.Trainer`]; `args` is a [`C2FMAETrainingArguments`].
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._averages = RunningAverages()
        self._watched = Watched()
        self._evaluation_report: dict[str, Any] | None = None
        self._num_skipped = torch.zeros((), dtype=torch.long)
        progress = getattr(self.train_dataset, "progress", None)
        if isinstance(progress, SharedProgress):
            self.add_callback(CurriculumCallback(progress))
        if isinstance(self.train_dataset, C2FMAEIterableDataset):
            self.train_dataset.batch_size = self.args.train_batch_size
        # Steps and batches before this run's first, and the checkpoint whose random state it takes up.
        self._stream_start = (0, 0)
        self._resumed_from: str | None = None
        if isinstance(self.data_collator, DataCollatorForC2FMAE):
            self.data_collator.return_diagnostics = True

    def _begin_run(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self._check_identity(Path(checkpoint))
        stream = self.train_dataset
        if isinstance(stream, C2FMAEIterableDataset):
            stream.state_folder = Path(str(self.args.output_dir)) / _STREAM_FOLDER
            if self.args.should_save:
                shutil.rmtree(stream.state_folder, ignore_errors=True)
                stream.state_folder.mkdir(parents=True)
            self.accelerator.wait_for_everyone()
            if checkpoint is not None:
                self._resume_stream(stream, checkpoint)

    def _end_run(self) -> None:
        stream = self.train_dataset
        if isinstance(stream, C2FMAEIterableDataset) and self.args.should_save:
            assert stream.state_folder is not None
            shutil.rmtree(stream.state_folder, ignore_errors=True)
            stream.state_folder = None

    def _identity(self) -> dict[str, Any]:
        """What makes a run the same run, beside its model: a stream has its own account of its rows."""
        args, rows = self.args, getattr(self.train_dataset, "rows", None)
        batch_size = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        identity = {"seed": args.seed, "data_seed": args.data_seed, "batch_size": batch_size}
        if isinstance(self.train_dataset, C2FMAEDataset):
            identity["rows"] = len(self.train_dataset)
            if rows is not None and "image_id" in (getattr(rows, "column_names", None) or ()):
                spread = sorted({index * (len(rows) - 1) // 63 for index in range(64)})
                identity["image_ids"] = text_sha256("\n".join(map(str, rows.select(spread)["image_id"])))
        return identity

    def _check_identity(self, checkpoint: Path) -> None:
        """
        Raises:
            `ValueError`: if this is another run than the checkpoint's: another seed, or other rows.
        """
        path = checkpoint / IDENTITY_FILE
        before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        now = self._identity()
        names = {"rows": "number of training rows", "image_ids": "fingerprint of the training rows"}
        for name in ("seed", "data_seed", "rows", "image_ids"):
            if name in before and name in now and before[name] != now[name]:
                raise ValueError(
                    f"{checkpoint}: expected its run's {names.get(name, name)}, {before[name]!r}, got {now[name]!r}: "
                    "order, masks and held-out images would not be the same run's. To begin another one from its "
                    f"weights, leave out resume_from_checkpoint and pass --model_name_or_path {checkpoint}"
                )
        if before.get("batch_size", now["batch_size"]) != now["batch_size"]:
            logger.warning(
                f"{checkpoint} was trained with {before['batch_size']} images a step, now there are "
                f"{now['batch_size']}; the learning rate goes on as the checkpoint has it"
            )

    def _resume_stream(self, stream: C2FMAEIterableDataset, checkpoint: str) -> None:
        path = Path(checkpoint) / STREAM_FILE
        if not path.is_file():
            raise ValueError(f"{path}: expected where the stream stood, found nothing")
        content = json.loads(path.read_text(encoding="utf-8"))
        stream.load_state_dict(content)
        self._stream_start = (content["step"], content["num_batches"])
        self._resumed_from = checkpoint
        # The stream itself begins there: the library is to skip nothing.
        self.args.ignore_data_skip = True

    def _add_to_checkpoint(self, folder: Path) -> None:
        write_json(folder / IDENTITY_FILE, self._identity())
        stream = self.train_dataset
        if isinstance(stream, C2FMAEIterableDataset):
            first_step, first_batch = self._stream_start
            per_step = self.args.gradient_accumulation_steps * self.args.world_size
            num_batches = first_batch + (self.state.global_step - first_step) * per_step
            write_json(folder / STREAM_FILE, {"step": self.state.global_step, **stream.state_dict(num_batches)})

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        batches = super().get_batch_samples(*args, **kwargs)
        if self._resumed_from is not None:
            # The loader has drawn a number by now, as it had before the checkpoint.
            self._load_rng_state(self._resumed_from)
            self._resumed_from = None
        return batches

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if isinstance(dataset, C2FMAEDataset) and dataset.progress is not None:
            seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
            return EpochSampler(len(dataset), dataset.progress, seed)
        return super()._get_train_sampler(train_dataset)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Matrices and filters; everything of one row (norms, biases) and the tokens stay undecayed."""
        names = super().get_decay_parameter_names(model)
        tokens = ("cls_token", "mask_token")
        return [name for name in names if not name.endswith(tokens)]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ):
        inputs = dict(inputs)
        strategy, image_ids, num_skipped = (inputs.pop(name, None) for name in DIAGNOSTICS)
        if isinstance(self.data_collator, DataCollatorForC2FMAE) and "bool_masked_pos" in inputs:
            num_patches = inputs["bool_masked_pos"].shape[1]
            inputs["num_masked"] = self.data_collator.config.num_masked_patches(num_patches)
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)

        values = {f"{name}_loss": outputs.get(f"{name}_loss") for name in GRANULARITIES}
        values = {name: value.detach().mean() for name, value in values.items() if value is not None}
        watched = self._watched if model.training else Watched()
        watched.add({"loss": loss.mean(), **values}, inputs, image_ids)
        if not model.training and self._evaluation_report is None:
            self._evaluation_report = watched.report()
        if strategy is not None and model.training:
            names = (*MASKING_STRATEGIES, "fallback")
            for index, name in enumerate(names[: FALLBACK + 1]):
                values[f"masked_{name}"] = (strategy == index).float().mean()
        if num_skipped is not None and model.training:
            self._num_skipped = self._num_skipped.to(num_skipped.device) + num_skipped.sum()
        self._averages.add(values, weight=len(inputs["pixel_values"]))
        return (loss, outputs) if return_outputs else loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        # The last thing that the library asks before it updates the weights.
        norm = super()._get_grad_norm(model, grad_norm)
        watched, self._watched = self._watched, Watched()
        report = watched.report(norm if self.accelerator.scaler is None else None)
        if self.accelerator.num_processes > 1:
            fault = torch.tensor(float(report is not None), device=self.args.device)
            is_at_fault = bool(self.accelerator.reduce(fault, reduction="sum") > 0)
        else:
            is_at_fault = report is not None
        if is_at_fault:
            if report is not None:
                losses = _granularities_of(report)
                # Sharded weights have no gradients of their own.
                if not losses and not self.is_fsdp_enabled:
                    losses = watched.granularities_at_fault(self.accelerator.unwrap_model(model))
                report["granularities"] = losses
            self._stop(model, report)
        return norm

    def _stop(self, model: nn.Module, report: dict[str, Any] | None, when: str = "") -> None:
        """Save, report and raise, in all processes; `report` is that of this one, if it is at fault."""
        step, folder = self.state.global_step, Path(str(self.args.output_dir))
        checkpoint, saved = None, ""
        if self.is_in_train:
            is_sound = self._is_sound(model)
            # What is not sound must not be resumed from, nor push out what is.
            checkpoint = f"{PREFIX_CHECKPOINT_DIR if is_sound else UNSOUND_PREFIX}-{step}"
            if not (folder / checkpoint).is_dir():
                self._save_as(checkpoint, model)
            saved = f". {folder / checkpoint} holds the weights as they were before this step"
            saved += "" if is_sound else ", which are not finite: resume from an earlier checkpoint"
        reports = gather_object([report])
        if self.is_world_process_zero():
            by_process = [{"process": rank, **one} for rank, one in enumerate(reports) if one is not None]
            content = {"step": step, "evaluation": bool(when), "checkpoint": checkpoint, "processes": by_process}
            write_json(folder / REPORT_FILE, with_words_for_numbers(content))
        words = "; ".join(_in_words(one) for one in reports if one is not None)
        raise FloatingPointError(f"{when}step {step}: {words}{saved}, {folder / REPORT_FILE} this report")

    def _is_sound(self, model: nn.Module) -> bool:
        """Whether weights and the optimizer's state are finite, in all processes."""
        states = self.optimizer.state.values() if self.optimizer is not None else ()
        values = [*model.parameters(), *(value for state in states for value in state.values())]
        is_sound = all(_local(value).isfinite().all() for value in values if isinstance(value, torch.Tensor))
        faults = torch.tensor(float(not is_sound), device=self.args.device)
        return bool(self.accelerator.reduce(faults, reduction="sum") == 0)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs = {**logs, **self._averages.pop(self)}
            if getattr(self.train_dataset, "on_bad_row", "raise") == "skip":
                skipped = self._num_skipped.to(self.args.device)
                logs["skipped_rows"] = int(self.accelerator.reduce(skipped, reduction="sum"))
            if isinstance(self.data_collator, DataCollatorForC2FMAE):
                progress = torch.tensor([self.state.global_step / max(self.state.max_steps, 1)])
                weights = self.data_collator.curriculum.probabilities(progress)[0].tolist()
                logs.update({f"curriculum_{name}": w for name, w in zip(MASKING_STRATEGIES, weights)})
        super().log(logs, start_time)

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs) -> EvalLoopOutput:
        # Training steps since the last log wait while evaluation uses the averages.
        training_averages, self._averages = self._averages, RunningAverages()
        self._evaluation_report = None
        try:
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
            metrics = self._averages.pop(self)
        finally:
            self._averages = training_averages
        report, self._evaluation_report = self._evaluation_report, None
        if any(one is not None for one in gather_object([report])):
            if report is not None:
                report["granularities"] = _granularities_of(report)
            self._stop(self.model_wrapped, report, "evaluation at ")
        assert output.metrics is not None
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})
        return output

    def save_encoder(self, output_dir: str | os.PathLike) -> None:
        """
        Write the encoder alone, with timm's keys in its configuration, and the image processor: a folder for
        `AutoModel.from_pretrained` and `timm.create_model("local-dir:...")`. It appears only when complete, in place
        of an earlier encoder there.

        Raises:
            `FileExistsError`: if the folder holds anything but a model.
        """
        if not self.is_world_process_zero():
            return
        output_dir = Path(output_dir)
        if output_dir.exists() and any(output_dir.iterdir()) and not (output_dir / "config.json").is_file():
            raise FileExistsError(f"{output_dir}: expected an empty folder or one with a model, got other files")
        model = self.accelerator.unwrap_model(self.model)
        with replace_folder(output_dir) as temporary:
            model.image_encoder().save_pretrained(temporary)
            if self.processing_class is not None:
                self.processing_class.save_pretrained(temporary)


def _granularities_of(report: dict[str, Any]) -> list[str]:
    losses = {name for one in report["losses"] for name in GRANULARITIES if not _is_finite(one, name)}
    return sorted(losses, key=GRANULARITIES.index)


def _local(value: torch.Tensor) -> torch.Tensor:
    return value.to_local() if isinstance(value, DTensor) else value


def _is_finite(losses: dict[str, float], granularity: str) -> bool:
    return math.isfinite(losses.get(f"{granularity}_loss", 0.0))


def _in_words(report: dict[str, Any]) -> str:
    names = f" of {', '.join(report['granularities'])}" if report.get("granularities") else ""
    norm = "" if report["gradient_norm"] is None else f", gradient norm {report['gradient_norm']:g}"
    return f"expected finite losses and gradients{names}, got {report['losses']}{norm} for {report['image_ids']}"


class RunningAverages:
    """Weighted means of logged values, kept on their device until they are asked for."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._weights: dict[str, float] = defaultdict(float)

    def add(self, values: dict[str, torch.Tensor], weight: float) -> None:
        for name, value in values.items():
            weighted = value.double() * weight if value.device.type != "mps" else value * weight
            self._sums[name] = self._sums[name] + weighted if name in self._sums else weighted
            self._weights[name] += weight

    def pop(self, trainer: Trainer) -> dict[str, float]:
        """The means over all processes since the last call, and a new start."""
        means = {}
        for name, total in self._sums.items():
            pair = torch.stack([total, torch.full_like(total, self._weights[name])])
            total_sum, total_weight = trainer.accelerator.reduce(pair, reduction="sum").tolist()
            means[name] = total_sum / total_weight
        self.__init__()  # type: ignore[misc]
        return means
