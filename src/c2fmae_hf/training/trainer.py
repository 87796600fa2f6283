"""The trainer for pre-training: it accepts plain rows, follows the curriculum and logs every granularity's loss."""

from __future__ import annotations

import atexit
import copy
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import gather_object
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Sampler, Subset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput, PredictionOutput

from ..configuration_c2fmae import C2FMAEConfig
from ..constants import GRANULARITIES, MASKING_STRATEGIES
from ..data.data_collator import DIAGNOSTICS, FALLBACK, DataCollatorForC2FMAE
from ..data.dataset import C2FMAEDataset
from ..data.progress import SharedProgress
from ..data.rows import MAP_COLUMNS, undecoded
from ..data.sampling import EpochSampler
from ..data.streaming import C2FMAEIterableDataset, merge_states
from ..data.transforms import evaluation_transform, training_transform
from ..image_processing_c2fmae import C2FMAEImageProcessor
from ..utils.files import file_sha256, read_json, replace_folder, text_sha256, write_json
from .callbacks import CurriculumCallback
from .even_batches import IS_FILLER, EvenBatches
from .non_finite import MAX_UNREAD, REPORT_FILE, Watched, has_faulty_loss
from .publishing_trainer import PublishingTrainer
from .running_averages import RunningAverages
from .training_args import C2FMAETrainingArguments


logger = logging.getLogger(__name__)

IDENTITY_FILE = "run_identity.json"
STREAM_FILE = "stream_state.json"


class C2FMAETrainer(PublishingTrainer):
    """
    Pre-trains [`C2FMAEForPreTraining`] on the rows of a dataset.

    - The curriculum follows `global_step / max_steps` in every data-loading worker, and a resumed run continues it.
    - Every process reads its own share of a stream. A resumed stream continues from the position in the checkpoint's
      `stream_state.json`, without reading the earlier rows again, also with other processes, workers or batch sizes
      (then in another order).
    - Logs and `trainer_state.json` hold each granularity's loss (averaged over the logged steps, images and
      processes) and the share of images masked by each strategy. If bad rows are skipped, they also hold the number
      of rows skipped since the run was started or resumed.
    - A checkpoint can only be resumed with the same seed and rows. Otherwise a `ValueError` says what differs.
    - Norms, biases and tokens get no weight decay.
    - `push_to_hub` publishes in one commit, with a card, in a layout that timm loads too.
    - A loss or gradient that is not finite never reaches the weights, and raises `FloatingPointError`.
      `non_finite.json` names the step, the losses and the images. `non-finite-<step>` holds a checkpoint with the
      weights and optimizer state before that step; it replaces no other checkpoint and is not resumed from
      automatically. A fused optimizer, the default, skips that update and all later ones on the device, so that no
      step waits for the device; the error comes with the next log, checkpoint, evaluation or end of an epoch, after at
      most 50 steps. Any other optimizer waits before every update. With float16 only losses are checked, since its
      scaler skips such gradients.

    Args:
        model ([`C2FMAEForPreTraining`]): Its configuration determines transforms, maps and masks.
        args ([`C2FMAETrainingArguments`], *optional*): By default the output folder is `tmp_trainer`, as in
            transformers.
        data_collator (*optional*): By default a [`DataCollatorForC2FMAE`] with the curriculum of `args`.
        train_dataset (`datasets.Dataset` or `datasets.IterableDataset`, *optional*): Rows with the column `image` and,
            where a granularity or a guided curriculum needs them, `semantic` and `instance`. The trainer wraps them
            in a [`C2FMAEDataset`] or [`C2FMAEIterableDataset`]; either can also be passed.
        eval_dataset (*optional*): The same, or a dictionary of such datasets.
        processing_class ([`C2FMAEImageProcessor`], *optional*): Saved with the model. By default built from the
            model's configuration.
        kwargs: Arguments of [`PublishingTrainer`].

    Raises:
        `ValueError`: if a required column is missing from the rows.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        args: C2FMAETrainingArguments | None = None,
        data_collator: Callable[[Any], Any] | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: C2FMAEImageProcessor | None = None,
        **kwargs: Any,
    ) -> None:
        args = C2FMAETrainingArguments("tmp_trainer") if args is None else args
        if not isinstance(args, C2FMAETrainingArguments):
            raise ValueError(f"args: expected C2FMAETrainingArguments, got {type(args).__name__}")
        if isinstance(train_dataset, datasets.DatasetDict):
            raise ValueError(f"train_dataset: expected one split, got a dictionary of {sorted(train_dataset)}")
        if model is None and "model_init" in kwargs:
            config = kwargs["model_init"]().config
        else:
            config = getattr(model, "config", None)
        if isinstance(config, C2FMAEConfig):
            if processing_class is None:
                processing_class = C2FMAEImageProcessor.from_config(config)
            if data_collator is None:
                data_collator = DataCollatorForC2FMAE(
                    config, args.get_curriculum(), args.seed, evaluation_masking=args.evaluation_masking
                )
            train_dataset = wrap_rows(unwrap_subset(train_dataset), config, args, processing_class, is_training=True)
            if isinstance(eval_dataset, dict):
                eval_dataset = {
                    name: wrap_rows(fixed(rows), config, args, processing_class) for name, rows in eval_dataset.items()
                }
            else:
                eval_dataset = wrap_rows(fixed(eval_dataset), config, args, processing_class)
        check_curriculum(data_collator, args)
        if isinstance(train_dataset, (C2FMAEDataset, C2FMAEIterableDataset)) and train_dataset.progress is None:
            train_dataset = copy.copy(train_dataset)  # the caller may also evaluate on it
            train_dataset.progress = SharedProgress()
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        self._averages = RunningAverages()
        self._more_to_log: dict[str, float] = {}
        self._watched = Watched()
        self._is_withheld: torch.Tensor | None = None
        self._num_skipped = torch.zeros((), dtype=torch.long)
        self.add_callback(FiniteCallback(self))
        progress = getattr(self.train_dataset, "progress", None)
        if isinstance(progress, SharedProgress):
            self.add_callback(CurriculumCallback(progress))
        if isinstance(self.train_dataset, C2FMAEIterableDataset):
            self.train_dataset.batch_size = self.args.train_batch_size
        # Steps done before this run began, and the checkpoint whose random state is still to be restored.
        self._first_step = 0
        self._resumed_from: str | None = None
        if isinstance(self.data_collator, DataCollatorForC2FMAE):
            self.data_collator.return_diagnostics = True

    def _begin_run(self, checkpoint: str | None) -> None:
        self._watched, self._is_withheld = Watched(), None
        if checkpoint is not None:
            self._check_identity(Path(checkpoint) / IDENTITY_FILE)
        stream = self.train_dataset
        if isinstance(stream, C2FMAEIterableDataset):
            # For the states that this process's workers write; a file system that others share would be slower.
            stream.state_folder = Path(tempfile.mkdtemp(prefix="c2fmae-stream-"))
            atexit.register(shutil.rmtree, stream.state_folder, ignore_errors=True)
            self._first_step = 0
            stream.load_state_dict(None)
            if checkpoint is not None:
                self._resume_stream(stream, checkpoint)

    def _end_run(self) -> None:
        stream = self.train_dataset
        if isinstance(stream, C2FMAEIterableDataset) and stream.state_folder is not None:
            shutil.rmtree(stream.state_folder, ignore_errors=True)
            stream.state_folder = None

    def _identity(self) -> dict[str, Any]:
        """Seeds and rows, which set order, crops, masks and held-out images; a stream records its rows itself."""
        identity: dict[str, Any] = {"seed": self.args.seed, "data_seed": self.args.data_seed}
        if isinstance(self.train_dataset, C2FMAEDataset):
            rows: Any = self.train_dataset.rows
            identity["rows"] = len(rows)
            if isinstance(rows, datasets.Dataset):
                spread = undecoded(rows).select(sorted({index * (len(rows) - 1) // 63 for index in range(64)}))
                if "image_id" in spread.column_names:
                    identity["image_ids"] = text_sha256("\n".join(map(str, spread["image_id"])))
                # The fingerprint of `datasets` would change with the dataset's path and how it was built.
                columns = [name for name in ("image", *MAP_COLUMNS) if name in spread.column_names]
                contents = [_checksum(row[name]) for row in spread for name in columns]
                identity["contents"] = text_sha256(" ".join(contents))
        return identity

    def _check_identity(self, path: Path) -> None:
        """
        Raises:
            `ValueError`: if the checkpoint's run had another seed or other rows.
        """
        before, now = read_json(path) if path.is_file() else {}, self._identity()
        for name in now:
            if name in before and before[name] != now[name]:
                raise ValueError(
                    f"{path.parent}: expected its run's {name}, {before[name]!r}, got {now[name]!r}, which changes "
                    "order, masks and held-out images. To start a new run from these weights, leave out "
                    f"resume_from_checkpoint and pass --model_name_or_path {path.parent}"
                )

    def _resume_stream(self, stream: C2FMAEIterableDataset, checkpoint: str) -> None:
        path = Path(checkpoint) / STREAM_FILE
        if not path.is_file():
            raise ValueError(f"{path}: expected the position of the stream, found no such file")
        content = read_json(path)
        args, self._first_step = self.args, content["step"]
        self._set_share(stream)
        position = content["step"] * args.gradient_accumulation_steps * args.world_size * args.train_batch_size
        stream.load_state_dict(content, position)
        _, num_batches, _ = stream.divide(args.dataloader_num_workers)
        if num_batches == 0:
            logger.warning(
                f"{checkpoint}: processes, workers or batch size are others than in the run to resume, so the stream "
                "is divided anew: each epoch still has every row once, in another order than in an uninterrupted run"
            )
        self._resumed_from = checkpoint
        # The stream already starts at this position, so the library must not skip batches.
        args.ignore_data_skip = True

    def _add_to_checkpoint(self, folder: Path) -> None:
        stream, content = self.train_dataset, None
        if isinstance(stream, C2FMAEIterableDataset):
            per_step = self.args.gradient_accumulation_steps * self.args.world_size
            num_batches = (self.state.global_step - self._first_step) * per_step
            own = stream.state_dict(num_batches, self.args.dataloader_num_workers)
            content = {"step": self.state.global_step, **merge_states(gather_object([own]))}
        if self.args.should_save:
            write_json(folder / IDENTITY_FILE, self._identity())
            if content is not None:
                write_json(folder / STREAM_FILE, content)

    def get_train_dataloader(self) -> DataLoader:
        """As in transformers, but every process reads its own share of a stream."""
        return self._undispatched(super().get_train_dataloader())

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """As in transformers, but every process reads its own share of a stream."""
        return self._even(self._undispatched(super().get_eval_dataloader(eval_dataset)))

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """As in transformers, but every process reads its own share of a stream."""
        return self._even(self._undispatched(super().get_test_dataloader(test_dataset)))

    def _even(self, loader: DataLoader) -> DataLoader:
        if self.args.world_size > 1 and isinstance(loader.dataset, C2FMAEIterableDataset):
            return EvenBatches(loader, self.accelerator)  # type: ignore[return-value]
        return loader

    def _undispatched(self, loader: DataLoader) -> DataLoader:
        """Replace accelerate's loader of a stream, with which the first process reads for all."""
        stream = loader.dataset
        if not isinstance(stream, C2FMAEIterableDataset):
            return loader
        self._set_share(stream)
        return prepare_data_loader(
            getattr(loader, "base_dataloader", loader),
            device=self.accelerator.device,
            num_processes=1,
            process_index=0,
            put_on_device=True,
            dispatch_batches=False,
            non_blocking=self.accelerator.non_blocking,
        )

    def _set_share(self, stream: C2FMAEIterableDataset) -> None:
        stream.process_index, stream.num_processes = self.args.process_index, self.args.world_size

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        batches = super().get_batch_samples(*args, **kwargs)
        if self._resumed_from is not None:
            # Starting the loader drew a random number, and the checkpoint's state already includes that draw.
            self._load_rng_state(self._resumed_from)
            self._resumed_from = None
        return batches

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if isinstance(dataset, C2FMAEDataset) and dataset.progress is not None:
            if self.args.train_sampling_strategy != "random":
                raise ValueError(
                    "train_sampling_strategy: expected 'random', whose order crops and masks follow, got "
                    f"{self.args.train_sampling_strategy!r}"
                )
            seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
            rest = len(dataset) % (self.args.train_batch_size * self.args.world_size)
            if not self.args.torch_compile or not rest:
                return EpochSampler(len(dataset), dataset.progress, seed)
            logger.warning(
                f"torch_compile: every epoch leaves {rest} other rows out, because a batch of another size would be "
                "compiled once more."
            )
            return EpochSampler(len(dataset), dataset.progress, seed, left_out=rest)
        return super()._get_train_sampler(train_dataset)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Names of the parameters with weight decay: matrices and filters, but no norms, biases or tokens."""
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
        is_filler = inputs.pop(IS_FILLER, False)
        strategy, image_ids, num_skipped = (inputs.pop(name, None) for name in DIAGNOSTICS)
        if isinstance(self.data_collator, DataCollatorForC2FMAE) and "bool_masked_pos" in inputs:
            num_patches = inputs["bool_masked_pos"].shape[1]
            inputs["num_masked"] = self.data_collator.config.num_masked_patches(num_patches)
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)

        losses = {"loss": loss, **{f"{name}_loss": outputs.get(f"{name}_loss") for name in GRANULARITIES}}
        losses = {name: value.detach().reshape(-1).float() for name, value in losses.items() if value is not None}
        names, values = list(losses), torch.stack(list(losses.values())).mean(dim=1)
        self._watched.add(names, values, image_ids)
        if strategy is not None and model.training:
            strategies = [f"masked_{name}" for name in (*MASKING_STRATEGIES, "fallback")[: FALLBACK + 1]]
            number = torch.arange(len(strategies), device=strategy.device)
            shares = (strategy[:, None] == number).float().mean(dim=0)
            names, values = names + strategies, torch.cat([values, shares])
        if num_skipped is not None and model.training:
            self._num_skipped = self._num_skipped.to(num_skipped.device) + num_skipped.sum()
        # transformers counts evaluation's last batch, which may be short or repeated, like the others.
        first = 1 if model.training else 0
        self._averages.add(names[first:], values[first:], weight=0 if is_filler else len(inputs["pixel_values"]))
        return (loss, outputs) if return_outputs else loss

    def check_update(self) -> None:
        """
        Withhold this update and all later ones, in all processes, if a loss or gradient is not finite in any.

        Raises:
            `FloatingPointError`: if the optimizer cannot withhold updates on the device, as a fused one can.
        """
        norm = None
        if self.accelerator.scaler is None:
            parameters = self.model_wrapped.parameters()
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients)
        flag = self._end_update(norm)
        optimizer: Any = getattr(self.optimizer, "optimizer", self.optimizer)  # accelerate wraps it
        can_withhold = getattr(optimizer, "_step_supports_amp_scaling", False) and not isinstance(norm, DTensor)
        if self.accelerator.scaler is not None or not can_withhold:
            self.stop_if_not_finite()
            return
        self._is_withheld = flag if self._is_withheld is None else torch.maximum(self._is_withheld, flag)
        optimizer.found_inf = self._is_withheld  # where a gradient scaler sets it, too
        if len(self._watched.updates) >= MAX_UNREAD:
            self.stop_if_not_finite()

    def _end_update(self, gradient_norm: torch.Tensor | None = None) -> torch.Tensor:
        """Close the watched update: 1 if anything is not finite in any process, else 0."""
        flag = self._watched.end_update(self.state.global_step, gradient_norm)
        if self.accelerator.num_processes > 1:
            flag.copy_(self.accelerator.reduce(flag, reduction="sum").clamp(max=1))
        return flag

    def stop_if_not_finite(self, when: str = "") -> None:
        """
        Read whether the updates since the last call were finite. All processes must call this.

        Raises:
            `FloatingPointError`: if one was not, once its report and a checkpoint are saved.
        """
        found = self._watched.report()
        if found is None:
            return
        step, report = found
        folder = Path(str(self.args.output_dir))
        checkpoint = None
        if self.is_in_train:
            # The name differs from other checkpoints', so that it replaces none and is not resumed from automatically.
            checkpoint = f"non-finite-{step}"
            noticed = self.state.global_step
            self._go_back_to(step)
            self._save_checkpoint(self.model_wrapped, None)
            self.finish_checkpoint(checkpoint)
            self.state.global_step = noticed
        reports = [{"process": rank, **one} for rank, one in enumerate(gather_object([report])) if one is not None]
        # All processes share the gradient, so those whose losses are finite have only caught the others' fault.
        reports = [one for one in reports if has_faulty_loss(one)] or reports
        content = {"step": step, "evaluation": bool(when), "checkpoint": checkpoint, "processes": reports}
        if self.is_world_process_zero():
            write_json(folder / REPORT_FILE, content)
        raise FloatingPointError(
            f"{when}step {step}: expected finite losses and gradients, got {reports}. The report is in "
            f"{folder / REPORT_FILE}"
            + (f", and the weights before this step are in {folder / checkpoint}" if checkpoint else "")
        )

    def _go_back_to(self, step: int) -> None:
        """Set step and learning rate back to where the weights have stayed."""
        self.state.global_step = step
        scheduler = getattr(self.lr_scheduler, "scheduler", self.lr_scheduler)  # accelerate wraps it
        if isinstance(scheduler, LambdaLR) and step < scheduler.last_epoch:
            scheduler.last_epoch = step - 1
            scheduler.step()

    def add_to_log(self, **values: float) -> None:
        """Add values to the next log record of training losses."""
        self._more_to_log.update(values)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            averages, self._averages = self._averages, RunningAverages()
            more, self._more_to_log = self._more_to_log, {}
            logs = {**logs, **averages.means(self.accelerator), **more}
            if getattr(self.train_dataset, "on_bad_row", "raise") == "skip":
                skipped = self._num_skipped.to(self.args.device)
                logs["skipped_rows"] = int(self.accelerator.reduce(skipped, reduction="sum"))
        super().log(logs, start_time)

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As in transformers. Plain rows are wrapped like the constructor's `eval_dataset`."""
        return super().evaluate(self._wrapped(eval_dataset), *args, **kwargs)

    def predict(self, test_dataset: Any, *args: Any, **kwargs: Any) -> PredictionOutput:
        """As in transformers. Plain rows are wrapped like the constructor's `eval_dataset`."""
        return super().predict(self._wrapped(test_dataset), *args, **kwargs)

    def _wrapped(self, rows: Any) -> Any:
        config = getattr(self.accelerator.unwrap_model(self.model), "config", None)
        if isinstance(config, C2FMAEConfig) and isinstance(self.processing_class, C2FMAEImageProcessor):
            return wrap_rows(fixed(rows), config, self.args, self.processing_class)  # type: ignore[arg-type]
        return rows

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs) -> EvalLoopOutput:
        # Set the averages of the training steps since the last log aside.
        training, (self._averages, self._watched) = (self._averages, self._watched), (RunningAverages(), Watched())
        try:
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
            metrics = self._averages.means(self.accelerator)
            self._end_update()
            self.stop_if_not_finite("evaluation at ")
        finally:
            self._averages, self._watched = training
        assert output.metrics is not None
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})
        return output

    def save_encoder(self, output_dir: str | os.PathLike) -> None:
        """
        Save the encoder and its image processor to a folder that `AutoModel.from_pretrained` and
        `timm.create_model("local-dir:...")` load. The folder appears only when it is complete, and replaces an earlier
        encoder there.

        Raises:
            `FileExistsError`: if the folder is not empty and holds no model.
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


def _checksum(value: Any) -> str:
    """Checksum of an undecoded image, from its bytes or its file."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    return file_sha256(value) if isinstance(value, str) and os.path.isfile(value) else str(value)


class FiniteCallback(TrainerCallback):
    """
    Withholds updates of a [`C2FMAETrainer`] whose loss or gradient is not finite, and stops the run before it logs,
    saves, evaluates or ends.
    """

    def __init__(self, trainer: C2FMAETrainer) -> None:
        self.trainer = trainer

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.check_update()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if control.should_log or control.should_save or control.should_evaluate or control.should_training_stop:
            self.trainer.stop_if_not_finite()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.stop_if_not_finite()


def check_curriculum(data_collator: Any, args: C2FMAETrainingArguments) -> None:
    """
    Raises:
        `ValueError`: if the collator's curriculum differs from the one in the arguments.
    """
    if isinstance(data_collator, DataCollatorForC2FMAE):
        described = args.get_curriculum()
        if data_collator.curriculum != described:
            raise ValueError(
                f"data_collator.curriculum: expected the arguments' curriculum, {described}, got "
                f"{data_collator.curriculum}. Pass DataCollatorForC2FMAE(config, args.get_curriculum()), or leave the "
                "collator out"
            )


def unwrap_subset(dataset: Any) -> Any:
    """
    Turn a `torch.utils.data.Subset` of a [`C2FMAEDataset`] or of rows into a [`C2FMAEDataset`] or rows. Anything else
    is returned unchanged.

    Raises:
        `ValueError`: for a `ConcatDataset` of such datasets, in which epochs would not advance.
    """
    if isinstance(dataset, Subset):
        inner = unwrap_subset(dataset.dataset)
        if isinstance(inner, C2FMAEDataset):
            chosen, rows = list(dataset.indices), inner.rows
            inner = copy.copy(inner)
            inner.rows = rows.select(chosen) if isinstance(rows, datasets.Dataset) else [rows[i] for i in chosen]
            return inner
        if isinstance(inner, datasets.Dataset) and inner.format["type"] != "custom":
            return inner.select(list(dataset.indices))
    parts = dataset.datasets if isinstance(dataset, ConcatDataset) else []
    if any(isinstance(unwrap_subset(part), C2FMAEDataset) for part in parts):
        raise ValueError(
            "train_dataset: expected one C2FMAEDataset, got a ConcatDataset, in which masks and crops would never "
            "change. Pass datasets.concatenate_datasets([...]) of the rows"
        )
    return dataset


def fixed(dataset: Any) -> Any:
    """A dataset to evaluate on: its crops do not change, even if it is a part of one that is trained on."""
    dataset = unwrap_subset(dataset) if isinstance(dataset, Subset) else dataset
    if isinstance(dataset, C2FMAEDataset) and dataset.progress is not None:
        dataset = copy.copy(dataset)
        dataset.progress = None
    return dataset


def wrap_rows(
    rows: Any,
    config: C2FMAEConfig,
    args: C2FMAETrainingArguments,
    processor: C2FMAEImageProcessor,
    is_training: bool = False,
) -> Any:
    """
    Wrap plain rows in a [`C2FMAEDataset`] or [`C2FMAEIterableDataset`] without progress. Anything else is returned
    unchanged.

    Args:
        rows (`datasets.Dataset`, `datasets.IterableDataset`, a list of dictionaries with `image`, or anything else).
        config, args, processor: Determine the label maps to read, the transform and the normalisation.
        is_training (`bool`): Whether crops and flips are random.
    """
    is_list = isinstance(rows, list) and bool(rows) and isinstance(rows[0], Mapping) and "image" in rows[0]
    if not is_list and not isinstance(rows, (datasets.Dataset, datasets.IterableDataset)):
        return rows
    if config.num_channels != 3:
        raise ValueError(
            f"num_channels: expected 3, since rows are read as RGB, got {config.num_channels}; for other images pass "
            "a dataset of your own"
        )
    curriculum = args.get_curriculum()
    needed = {*config.granularities, *config.input_granularities}
    if curriculum.schedule != "constant" or any(curriculum.weights[:2]):
        # Maps that only guide masks may be missing. Instance-guided masks fall back on semantic regions.
        columns = rows[0] if is_list else rows.column_names or MAP_COLUMNS
        missing = [name for name in MAP_COLUMNS if name not in columns and name not in needed]
        if missing:
            logger.warning("The rows have no column %s: the masks it would guide are random.", " and ".join(missing))
        needed.update(name for name in MAP_COLUMNS if name not in missing)
    if is_training:
        for name in empty_maps(rows, needed):
            logger.warning(
                "No row has a map in the column %s: its loss is 0, and masks that it would guide follow the other map "
                "or are random. To train without it, leave %s out of granularities.",
                *(name, name),
            )
        if isinstance(rows, datasets.IterableDataset) and args.data_seed not in (None, args.seed):
            logger.warning("data_seed: ignored for a stream, whose order follows seed=%d.", args.seed)
    scaling: dict[str, Any] = {
        "mean": processor.image_mean,
        "std": processor.image_std,
        "label_stride": config.label_stride,
    }
    size = config.image_height_width
    if is_training:
        transform = training_transform(size, scale=(args.min_crop_scale, 1.0), **scaling)
    else:
        transform = evaluation_transform(size, **scaling)
    options: dict[str, Any] = {
        "map_columns": [name for name in MAP_COLUMNS if name in needed],
        "num_semantic_classes": config.num_semantic_classes,
        "seed": args.seed,
        "on_bad_row": args.on_bad_row,
    }
    if isinstance(rows, datasets.IterableDataset):
        return C2FMAEIterableDataset(rows, transform, shuffle_rows=args.shuffle_rows, **options)
    return C2FMAEDataset(rows, transform, **options)


def empty_maps(rows: Any, needed: Collection[str]) -> list[str]:
    """Map columns without a single map, of rows in memory or on disk; a stream is not read for it."""
    if isinstance(rows, list):
        return [name for name in MAP_COLUMNS if name in needed and all(row.get(name) is None for row in rows)]
    if not isinstance(rows, datasets.Dataset):
        return []
    known = [name for name in MAP_COLUMNS if name in needed and name in rows.column_names]
    return [name for name in known if rows.data.column(name).null_count == len(rows.data)]
