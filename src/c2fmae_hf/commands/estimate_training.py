"""`c2fmae pretrain --estimate`: steps of a run are measured, with the run's own trainer, and the whole is computed."""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..data.dataset import C2FMAEDataset
from ..data.streaming import C2FMAEIterableDataset
from ..training.checkpoints import in_any_process
from ..training.decoder_evaluation import evaluate_decoder
from ..training.log_lines import LinePrinterCallback, LineProgressCallback, counted, readable_time
from ..training.trainer import C2FMAETrainer
from ..training.training_args import C2FMAETrainingArguments
from ..transfer.knn_probe import KNNProbeCallback
from . import estimate
from .estimate import (
    SMALL_SHARE,
    end_at_once,
    folder_bytes,
    memory_in_words,
    num_cores,
    peak_memory,
    rate_in_words,
    storage_in_words,
    without,
)
from .estimate_labelling import LabellingEstimate


def scratch_arguments(args: C2FMAETrainingArguments, folder: Path) -> C2FMAETrainingArguments:
    """The arguments of a run that writes to a scratch folder, and neither evaluates, publishes nor reports."""
    return without(
        args,
        output_dir=str(folder),
        eval_strategy="no",
        eval_on_start=False,
        save_strategy="no",
        load_best_model_at_end=False,
        push_to_hub=False,
        report_to=[],
    )


@dataclass
class Step:
    """Seconds of a step: waiting for its batches, and from then until its update is done."""

    waiting: float
    computing: float
    starts_epoch: bool


class StepTimes(TrainerCallback):
    """
    Measures the steps of a run and stops it when they suffice.

    Args:
        trainer ([`C2FMAETrainer`]): Add the callback to it.
        saves (`bool`): Whether the last step is followed by a checkpoint, which is measured, too.
    """

    def __init__(self, trainer: C2FMAETrainer, saves: bool) -> None:
        self.trainer, self.saves = trainer, saves
        self.steps: list[Step] = []
        self.seconds_to_save = 0.0

    @property
    def measured(self) -> list[Step]:
        return self.steps[estimate.WARM_UP :]

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        end_at_once()  # the trainer would save first

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        self.starts_epoch, self.clock = True, time.perf_counter()

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        now = time.perf_counter()
        self.waiting, self.clock = now - self.clock, now

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        if args.device.type != "cpu":
            torch.accelerator.synchronize(args.device)
        self.steps.append(Step(self.waiting, time.perf_counter() - self.clock, self.starts_epoch))
        self.starts_epoch = False
        seconds = sum(step.waiting + step.computing for step in self.measured)
        is_enough = len(self.measured) >= estimate.FEWEST and seconds >= estimate.SECONDS
        if in_any_process(self.trainer.accelerator, is_enough or state.global_step >= state.max_steps):
            control.should_training_stop, control.should_save = True, self.saves
        self.clock = time.perf_counter()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        self.seconds_to_save = time.perf_counter() - self.clock


def time_loader(trainer: C2FMAETrainer) -> float:
    """Seconds per image of a process's data loader alone; the start of its workers counts if epochs are short."""
    loader = trainer.get_train_dataloader()
    per_round = max(trainer.args.dataloader_num_workers, 1)  # batches, which workers finish together
    times, sizes = [time.perf_counter()], [0]
    for batch in loader:
        times.append(time.perf_counter())
        sizes.append(len(batch["pixel_values"]))
        rounds, rest = divmod(len(times) - 1, per_round)
        is_enough = rest == 0 and rounds >= 2 and times[-1] - times[0] >= estimate.SECONDS / 2
        if in_any_process(trainer.accelerator, is_enough):
            first, last = per_round, rounds * per_round
            break
    else:  # to the end of the epoch
        first, last = 0, len(times) - 1
    return (times[last] - times[first]) / sum(sizes[first + 1 : last + 1])


def first_rows(dataset: Any, number: int) -> Any:
    """A [`C2FMAEDataset`] or [`C2FMAEIterableDataset`] of the first rows."""
    dataset = copy.copy(dataset)
    if isinstance(dataset, C2FMAEIterableDataset):
        dataset.rows = dataset.rows.take(number)
    else:
        dataset.rows = dataset.rows.select(range(min(number, len(dataset.rows))))
    return dataset


def time_evaluation(trainer: C2FMAETrainer, num_rows: int) -> float:
    """Seconds of an evaluation of so many rows: those of a few batches, and of as many more as there are."""
    per_round = trainer.args.eval_batch_size * trainer.args.world_size * max(trainer.args.dataloader_num_workers, 1)
    times = []
    for number in (*[per_round] * trainer.args.torch_compile, per_round, 3 * per_round):
        begin = time.perf_counter()
        trainer.evaluate(first_rows(trainer.eval_dataset, number))
        times.append(time.perf_counter() - begin)
    return times[-1] + max(num_rows - 3 * per_round, 0) * max(times[-1] - times[-2], 0) / (2 * per_round)


def time_decoder_evaluation(trainer: C2FMAETrainer) -> float:
    """Seconds to compare the decoder's maps with those of all held-out rows."""
    rows = first_rows(trainer.eval_dataset, trainer.args.per_device_eval_batch_size)
    begin = time.perf_counter()
    model = trainer.accelerator.unwrap_model(trainer.model)
    evaluate_decoder(
        model, rows, trainer.data_collator, trainer.processing_class, trainer.args.per_device_eval_batch_size
    )
    return (time.perf_counter() - begin) * len(trainer.eval_dataset) / len(rows)


def time_probe(trainer: C2FMAETrainer, train: datasets.Dataset, held_out: datasets.Dataset) -> float:
    """Seconds of a k-NN probe."""
    few = [rows.select(range(min(len(rows), trainer.args.per_device_eval_batch_size))) for rows in (train, held_out)]
    begin = time.perf_counter()
    KNNProbeCallback(trainer, *few).probe()
    return (time.perf_counter() - begin) * (len(train) + len(held_out)) / sum(map(len, few))


def num_times(strategy: str, every: float | None, steps: int, epochs: float) -> int:
    """How often a run of so many steps evaluates or saves."""
    if strategy == "epoch":
        return math.ceil(epochs)
    return int(steps // every) if strategy == "steps" and every else 0


@dataclass
class TrainingEstimate:
    """Time, memory and storage of a run. Times are in seconds, sizes in bytes."""

    args: C2FMAETrainingArguments
    steps: int
    epochs: float
    images_per_step: float
    """Over all processes; on average, since the last step of an epoch may have fewer."""
    follows_rows: bool
    """Whether the number of steps follows from the rows, and not from `max_steps`."""
    num_measured: int
    computing: float
    """Per step, between its batches and the end of its update."""
    waiting: float
    """Per step, for its batches; the start of an epoch, when workers start, counts once an epoch."""
    loading: float
    """Per step, of the loader alone."""
    warming_up: float
    """Further time of the first steps."""
    workers_needed: int
    """Data-loading workers per process with which the model would not wait."""
    workers: int | None
    """As many or more, if the machine has the cores for them."""
    memory: int | None
    checkpoints: int
    checkpoint_seconds: float
    checkpoint_bytes: int
    evaluations: int
    evaluation_seconds: float | None
    """`None` if a stream's length is unknown."""
    probes: int
    probe_seconds: float
    decoder_seconds: float
    model_bytes: int
    encoder_bytes: int
    devices: int
    labelling: LabellingEstimate | None = None

    @property
    def step_seconds(self) -> float:
        # While steps were measured, workers may have been ahead of the model, from the batches of the warm-up.
        return max(self.computing + self.waiting, self.loading)

    @property
    def waiting_share(self) -> float:
        return 1 - self.computing / self.step_seconds

    def parts(self, devices: int | None = None) -> dict[str, float]:
        """Seconds of the parts of the run, here or on so many devices if these never wait."""
        steps, share = self.steps_on(devices), self.args.world_size / (devices or self.args.world_size)
        parts = {"labelling": self.labelling.seconds if self.labelling is not None else 0.0}
        parts["training"] = steps * (self.step_seconds if devices is None else self.computing)
        parts["warm-up" if not self.args.torch_compile else "compiling"] = self.warming_up
        parts[counted(self.evaluations, "evaluation")] = self.evaluations * (self.evaluation_seconds or 0) * share
        parts[counted(self.probes, "k-NN probe")] = self.probes * self.probe_seconds
        parts[counted(self.checkpoints, "checkpoint")] = self.checkpoints * self.checkpoint_seconds
        parts["scores of the decoder"] = self.decoder_seconds
        return parts

    def seconds(self, devices: int | None = None) -> float:
        return sum(self.parts(devices).values())

    def steps_on(self, devices: int | None) -> int:
        if devices is None or not self.follows_rows:
            return self.steps
        return math.ceil(max(self.steps * self.args.world_size / devices, self.epochs))

    def storage(self) -> dict[str, float]:
        """Bytes in the output folder by what they are."""
        kept = min(self.checkpoints, self.args.save_total_limit or self.checkpoints)
        return {
            counted(kept, "checkpoint"): kept * self.checkpoint_bytes,
            "model": self.model_bytes,
            "encoder": self.encoder_bytes,
            "dataset": self.labelling.bytes if self.labelling is not None else 0,
        }

    def lines(self) -> list[str]:
        """The estimate in words."""
        args, workers = self.args, self.args.dataloader_num_workers
        batch = self._at_most_the_rows(args.train_batch_size * args.gradient_accumulation_steps * args.world_size)
        factors = [str(args.train_batch_size)]
        factors += [f"{args.gradient_accumulation_steps} accumulated"] * (args.gradient_accumulation_steps > 1)
        factors += [f"{args.world_size} processes"] * (args.world_size > 1)
        product = f" ({' x '.join(factors)})" if len(factors) > 1 else ""
        passes = f", {self.epochs:.4g} passes over the rows" if self.epochs else ""
        loading = rate_in_words(self.images_per_step, self.loading)
        if workers:
            one = rate_in_words(self.images_per_step, self.loading * workers * args.world_size)
            loading += f" with {counted(workers, 'worker')}" + (" per process" if args.world_size > 1 else "")
            loading += f", {one} each" if workers * args.world_size > 1 else ""
        else:
            loading += " in the training process, which has no workers"
        lines = [
            f"run: {counted(self.steps, 'step')} of {counted(batch, 'image')}{product}{passes}, learning rate "
            f"{args.learning_rate:.2g}, on {args.device}",
            f"model: {rate_in_words(self.images_per_step, self.computing)} while it does not wait for data",
            f"loading alone: {loading}",
            f"together: {rate_in_words(self.images_per_step, self.step_seconds)}; {self._waiting_in_words()}",
            memory_in_words(args.device, self.memory),
            self._time_in_words(),
        ]
        if args.torch_compile:
            lines.append(f"compiling: {readable_time(self.warming_up)}, once, at the start")
        if self.evaluation_seconds is None:
            lines.append("evaluations: not counted, since the stream's length is unknown; see --max_eval_samples")
        if self.labelling is not None:
            lines.append(self._labelling_in_words())
        if self.devices != args.world_size:
            lines.append(self._devices_in_words())
        lines.append(storage_in_words(self.storage(), args.output_dir))
        return lines

    def _at_most_the_rows(self, images: int) -> int:
        """Images of a step, of which an epoch may have fewer."""
        return min(images, round(self.images_per_step * self.steps / self.epochs)) if self.epochs else images

    def _waiting_in_words(self) -> str:
        words = f"the model waits for data {self.waiting_share:.0%} of the time"
        if self.waiting_share < 0.05:
            return words
        if self.workers_needed <= self.args.dataloader_num_workers:
            return f"{words}, since it shares {counted(num_cores(), 'core')} with the workers or epochs are short"
        if self.workers is not None:
            return f"{words}; --dataloader_num_workers {self.workers} would keep up"
        return f"{words}; more workers need more cores"

    def _labelling_in_words(self) -> str:
        estimate = self.labelling
        rate = rate_in_words(1, estimate.together)
        if estimate.images is None:
            return (
                f"labelling: {rate}; the number of photographs is unknown, so this estimate is that of a run with the "
                f"{estimate.measured} that were labelled"
            )
        return f"labelling: {rate}; c2fmae label --estimate says more"

    def _time_in_words(self) -> str:
        total = self.seconds()
        parts = [f"{name} {readable_time(time)}" for name, time in self.parts().items() if time > SMALL_SHARE * total]
        return f"time: {readable_time(total)}: {', '.join(parts)}"

    def _devices_in_words(self) -> str:
        args = self.args
        per_device = args.train_batch_size * args.gradient_accumulation_steps
        here, there = per_device * args.world_size, per_device * self.devices
        rate = args.learning_rate
        if rate == args.scaled_learning_rate(here):
            rate = args.scaled_learning_rate(there)
        per_worker = self.loading * max(args.dataloader_num_workers, 1)
        workers = counted(math.ceil(per_worker / self.computing), "worker")
        steps = f"{self.steps_on(self.devices)} steps of {counted(self._at_most_the_rows(there), 'image')}"
        return (
            f"{counted(self.devices, 'device')} like this one: {readable_time(self.seconds(self.devices))} for "
            f"{steps}, learning rate {rate:.2g}, if gradients are exchanged in no time and loading keeps up, which "
            f"needs {workers} per device at this speed"
        )


def find_workers(args: C2FMAETrainingArguments, needed: int) -> int | None:
    """A number of workers per process, `needed` or more, for which there are cores."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", args.world_size))
    free = num_cores() - processes * (torch.get_num_threads() if args.device.type == "cpu" else 1)
    number = max(needed, args.dataloader_num_workers + 1)
    return number if number * processes <= free else None


def estimate_training(
    trainer: C2FMAETrainer,
    args: C2FMAETrainingArguments,
    follows_rows: bool,
    devices: int,
    max_eval_samples: int | None = None,
    probe: tuple[datasets.Dataset, datasets.Dataset] | None = None,
    probe_steps: int = 1,
    labelling: LabellingEstimate | None = None,
) -> TrainingEstimate:
    """
    Measure a few steps of a run, and parts of what else it does. All processes must call this.

    Args:
        trainer ([`C2FMAETrainer`]): The run's, but with [`scratch_arguments`].
        args ([`C2FMAETrainingArguments`]): The run's own.
        follows_rows (`bool`): Whether the number of steps follows from the rows.
        devices (`int`): A number of devices to compute the time for.
        max_eval_samples (`int`, *optional*): Length of a stream of held-out rows.
        probe (*optional*): Rows of the k-NN probe.
        probe_steps (`int`): Steps between probes.
        labelling (*optional*): If photographs are labelled first, what that takes.
    """
    for callback in (LineProgressCallback, LinePrinterCallback):
        trainer.remove_callback(callback)
    scratch, world = trainer.args, args.world_size
    loader = trainer.get_train_dataloader()
    is_sized = isinstance(trainer.train_dataset, Sized)
    per_step = args.train_batch_size * args.gradient_accumulation_steps * world
    steps, per_epoch, epochs = args.max_steps, math.inf, 0.0
    if is_sized:
        per_epoch = math.ceil(len(loader) / args.gradient_accumulation_steps)
        steps = steps if steps > 0 else math.ceil(args.num_train_epochs * per_epoch)
        epochs = steps / per_epoch
        per_step = min(len(trainer.train_dataset) / per_epoch, per_step)
    scratch.max_steps = max(steps, estimate.WARM_UP + estimate.FEWEST)
    if args.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(args.device)

    # Steps, with the last one's checkpoint
    times = StepTimes(trainer, saves=args.save_strategy != "no")
    trainer.add_callback(times)
    trainer.train()
    trainer.remove_callback(times)
    measured = times.measured
    computing = mean([step.computing for step in measured])
    waiting = mean([step.waiting for step in measured if not step.starts_epoch] or [measured[0].waiting])
    starts = [step.waiting for step in measured if step.starts_epoch] or [times.steps[0].waiting]
    waiting += (mean(starts) - waiting) / per_epoch
    first = times.steps[: estimate.WARM_UP]
    folder = Path(str(scratch.output_dir))
    sizes = {"checkpoint": 0, "model": 0, "encoder": 0}
    if trainer.is_world_process_zero():
        sizes["checkpoint"] = sum(folder_bytes(path) for path in folder.glob("checkpoint-*"))
        model = trainer.accelerator.unwrap_model(trainer.model)
        sizes["model"] = sum(p.numel() * p.element_size() for p in model.parameters())
        sizes["encoder"] = sum(p.numel() * p.element_size() for p in model.image_encoder().parameters())

    # Other parts of a run
    scratch.dataloader_persistent_workers = False  # the library would evaluate the same rows again
    per_image = time_loader(trainer)
    evaluation_seconds: float | None = 0.0
    decoder_seconds = 0.0
    evaluations = num_times(args.eval_strategy, trainer.state.eval_steps, steps, epochs)
    evaluations += args.eval_on_start
    if trainer.eval_dataset is not None:
        evaluations += 1  # at the end
        num_rows = len(trainer.eval_dataset) if isinstance(trainer.eval_dataset, Sized) else max_eval_samples
        evaluation_seconds = None if num_rows is None else time_evaluation(trainer, num_rows)
        if isinstance(trainer.eval_dataset, C2FMAEDataset) and trainer.is_world_process_zero():
            decoder_seconds = time_decoder_evaluation(trainer)
    checkpoints = num_times(args.save_strategy, trainer.state.save_steps, steps, epochs)
    if args.save_strategy == "steps" and steps % trainer.state.save_steps:
        checkpoints += 1  # at the end

    images = per_step / world
    loading = images * per_image
    needed = math.ceil(loading * max(args.dataloader_num_workers, 1) / computing)
    return TrainingEstimate(
        args=args,
        steps=steps,
        epochs=epochs,
        images_per_step=per_step,
        follows_rows=follows_rows,
        num_measured=len(measured),
        computing=computing,
        waiting=waiting,
        loading=loading,
        warming_up=max(sum(step.computing for step in first) - len(first) * computing, 0),
        workers_needed=needed,
        workers=find_workers(args, needed),
        checkpoints=checkpoints,
        checkpoint_seconds=times.seconds_to_save,
        checkpoint_bytes=sizes["checkpoint"],
        evaluations=evaluations,
        evaluation_seconds=evaluation_seconds,
        probes=0 if probe is None else 1 + math.ceil(steps / probe_steps),
        probe_seconds=0.0 if probe is None else time_probe(trainer, *probe),
        decoder_seconds=decoder_seconds,
        model_bytes=sizes["model"],
        encoder_bytes=sizes["encoder"],
        devices=devices,
        labelling=labelling,
        memory=peak_memory(args.device),
    )


def mean(values: list[float]) -> float:
    return sum(values) / len(values)
