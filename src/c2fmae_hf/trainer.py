"""The transformers Trainer with what pre-training adds: the order of samples, three logged losses, the encoder."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import nn
from torch.utils.data import Dataset, Sampler
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput, TrainOutput, get_last_checkpoint

from .callbacks import CurriculumCallback
from .constants import GRANULARITIES, MASKING_STRATEGIES
from .data_collator import DIAGNOSTICS, FALLBACK, DataCollatorForC2FMAE
from .dataset import C2FMAEDataset, EpochSampler
from .files import write_json
from .hub import PublishingTrainer
from .non_finite import REPORT_FILE, Watched
from .progress import SharedProgress
from .streaming import C2FMAEIterableDataset


STREAM_FILE = "stream_state.json"
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
      float16, whose scaler skips such gradients, losses alone are watched.

    Args: those of [`~transformers.Trainer`]; `args` is a [`C2FMAETrainingArguments`].
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._averages = RunningAverages()
        self._watched = Watched()
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

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """
        As in transformers.

        Raises:
            `ValueError`: if a stream cannot go on where the checkpoint stopped: with other shards, another batch size,
                shuffling or seed.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = get_last_checkpoint(str(self.args.output_dir)) or True
        stream = self.train_dataset
        if isinstance(stream, C2FMAEIterableDataset):
            stream.state_folder = Path(str(self.args.output_dir)) / _STREAM_FOLDER
            if self.args.should_save:
                shutil.rmtree(stream.state_folder, ignore_errors=True)
                stream.state_folder.mkdir(parents=True)
            self.accelerator.wait_for_everyone()
            if isinstance(resume_from_checkpoint, str):
                self._resume_stream(stream, resume_from_checkpoint)
        output = super().train(resume_from_checkpoint, *args, **kwargs)
        if isinstance(stream, C2FMAEIterableDataset) and self.args.should_save:
            assert stream.state_folder is not None
            shutil.rmtree(stream.state_folder, ignore_errors=True)
            stream.state_folder = None
        return output

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
        if not model.training and (report := watched.report()) is not None:
            raise FloatingPointError(f"evaluation at step {self.state.global_step}: {_in_words(report)}")
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
            self._stop(model, watched, report)
        return norm

    def _stop(self, model: nn.Module, watched: Watched, report: dict[str, Any] | None) -> None:
        step, folder = self.state.global_step, Path(str(self.args.output_dir))
        checkpoint = folder / f"{PREFIX_CHECKPOINT_DIR}-{step}"
        if not checkpoint.is_dir():
            self._save_checkpoint(model, trial=None)
        if report is not None:
            losses = [name for one in report["losses"] for name in GRANULARITIES if not _is_finite(one, name)]
            report["granularities"] = sorted(set(losses), key=GRANULARITIES.index)
            if not losses and self.accelerator.num_processes == 1:
                report["granularities"] = watched.granularities_at_fault(self.accelerator.unwrap_model(model))
        reports = gather_object([report])
        if self.is_world_process_zero():
            by_process = [{"process": rank, **one} for rank, one in enumerate(reports) if one is not None]
            write_json(folder / REPORT_FILE, {"step": step, "checkpoint": checkpoint.name, "processes": by_process})
        words = "; ".join(_in_words(one) for one in reports if one is not None)
        raise FloatingPointError(
            f"step {step}: {words}. {checkpoint} holds the weights as they were before this step, "
            f"{folder / REPORT_FILE} this report"
        )

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
        try:
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
            metrics = self._averages.pop(self)
        finally:
            self._averages = training_averages
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
        temporary = output_dir.with_name(f".{output_dir.name}.tmp-{os.getpid()}")
        shutil.rmtree(temporary, ignore_errors=True)
        model = self.accelerator.unwrap_model(self.model)
        model.image_encoder().save_pretrained(temporary)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(temporary)
        if output_dir.exists():
            shutil.rmtree(output_dir)
        temporary.rename(output_dir)


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
