"""The output of a training run: a paragraph at the start, an estimate of the time, and a line for each log record."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from tqdm.auto import tqdm
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_callback import TrainerControl

from ..constants import GRANULARITIES, MASKING_STRATEGIES


#: Steps after which the remaining time is estimated; the first step, which is slower, is left out.
FEW_STEPS = 5
_LEFT_OUT = (
    *("loss", "learning_rate", "epoch", "step", "grad_norm", "total_flos"),
    *("runtime", "samples_per_second", "steps_per_second", "ranked_accuracy"),
)
_DETAILS = ("_map_", "_mar_")  # of average precision: by size of the objects, and at single thresholds


def format_log(logs: Mapping[str, Any], step: int, max_steps: int) -> str:
    """
    One readable line for a record of the Trainer's log.

    Args:
        logs: The record.
        step, max_steps (`int`): Where the run stands.

    Returns:
        `step 10/420  semantic 1.99  instance 2.01  image 1.01  masks 60/40/0 %  knn 43.2 %`, where the masks are the
        shares of images masked by semantic-guided, instance-guided and random masking.
    """
    if "train_runtime" in logs:
        return f"trained for {readable_time(logs['train_runtime'])}"
    is_held_out = any(name.startswith("eval_") for name in logs)
    values = {name.removeprefix("eval_"): value for name, value in logs.items() if isinstance(value, (int, float))}
    parts = [f"step {step}/{max_steps}"] + ["held out:"] * is_held_out
    parts += [f"{name} {_number(values[f'{name}_loss'])}" for name in GRANULARITIES if f"{name}_loss" in values]
    if len(parts) == 1 + is_held_out:  # the sum of losses and the rate are shown only where these are missing
        parts += [f"loss {_number(values['loss'])}"] if "loss" in values else []
        parts += [f"rate {values['learning_rate']:.2g}"] if "learning_rate" in values else []
    shares = [values[f"masked_{name}"] for name in MASKING_STRATEGIES if f"masked_{name}" in values]
    if shares:
        parts.append(f"masks {'/'.join(f'{100 * share:.0f}' for share in shares)} %")
    if "knn_accuracy" in values:
        parts.append(f"knn {100 * values['knn_accuracy']:.1f} %")
    for name, value in values.items():
        is_shown = name.endswith("_loss") or name.startswith("masked_") or name == "knn_accuracy"
        if not is_shown and name not in _LEFT_OUT and not any(word in name for word in _DETAILS):
            parts.append(f"{name} {_number(value)}")
    if values.get("masked_fallback"):
        parts.append(f"without regions {100 * values['masked_fallback']:.0f} %")
    return "  ".join(parts)


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.3f}" if abs(value) < 1 else f"{value:.2f}"


def counted(number: int | float, noun: str, plural: str | None = None) -> str:
    """`1 step`, `2 steps`."""
    return f"{number if isinstance(number, int) else f'{number:g}'} {noun if number == 1 else plural or f'{noun}s'}"


def readable_time(seconds: float) -> str:
    """`45 s`, `12 min` or `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class LineProgressCallback(ProgressCallback):
    """The progress bar of transformers, with readable lines instead of dictionaries."""

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero and self.training_bar is not None:
            self.training_bar.write(format_log(logs, state.global_step, state.max_steps))


class LinePrinterCallback(PrinterCallback):
    """Readable lines without a bar, for `disable_tqdm`."""

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            print(format_log(logs, state.global_step, state.max_steps), flush=True)


def use_lines(trainer: Trainer) -> None:
    """Let a trainer print readable lines. In a notebook its bar stays."""
    for old, new in ((ProgressCallback, LineProgressCallback), (PrinterCallback, LinePrinterCallback)):
        if any(type(callback) is old for callback in trainer.callback_handler.callbacks):
            trainer.remove_callback(old)
            trainer.add_callback(new)


def announce(trainer: Trainer, facts: str) -> None:
    """Let a trainer print what it is about to do; see [`AnnouncementCallback`]."""
    # First in the list, so that it prints before the progress bar starts.
    trainer.callback_handler.callbacks.insert(0, AnnouncementCallback(facts))


class AnnouncementCallback(TrainerCallback):
    """
    Prints what a run is about to do, and after a few steps how long it will take.

    Args:
        facts (`str`): Sentences about model and data.
    """

    def __init__(self, facts: str) -> None:
        self.facts = facts

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, train_dataloader=None, **kwargs
    ) -> None:
        self.first_step, self.started = state.global_step, time.perf_counter()
        if state.is_world_process_zero:
            batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
            epochs = "" if args.max_steps > 0 else f" ({counted(args.num_train_epochs, 'epoch')})"
            begun = f", of which {state.global_step} are done," if state.global_step else ""
            tqdm.write(
                f"{self.facts} {counted(state.max_steps, 'step')} of {counted(batch, 'image')}{epochs}{begun} on "
                f"{args.device}, learning rate {args.learning_rate:.2g}. Output folder: {args.output_dir}."
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        done = state.global_step - self.first_step
        if done == 1:
            self.started = time.perf_counter()
        if done == min(FEW_STEPS, state.max_steps - self.first_step) and done > 1 and state.is_world_process_zero:
            per_step = (time.perf_counter() - self.started) / (done - 1)
            left = per_step * (state.max_steps - state.global_step)
            tqdm.write(f"{per_step:.2g} s a step: about {readable_time(left)} to go, without evaluations.")
