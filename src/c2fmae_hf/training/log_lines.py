"""What a run prints: what it is about to do, how long that takes, and one line for each record of the log."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_callback import TrainerControl

from ..constants import GRANULARITIES, MASKING_STRATEGIES


logger = logging.getLogger(__name__)

#: Steps after which the time of the others is estimated; the first ones are slower.
FEW_STEPS = 5
_LEFT_OUT = ("epoch", "loss", "grad_norm", "total_flos", "step")


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
    logs = dict(logs)
    if "train_runtime" in logs:
        return f"trained for {readable_time(logs['train_runtime'])}"
    prefix = "eval_" if any(name.startswith("eval_") for name in logs) else ""
    parts = [f"step {step}/{max_steps}", *(["held out:"] if prefix else [])]
    losses = [name for name in GRANULARITIES if f"{prefix}{name}_loss" in logs]
    parts += [f"{name} {_number(logs.pop(f'{prefix}{name}_loss'))}" for name in losses]
    if not losses and f"{prefix}loss" in logs:
        parts.append(f"loss {_number(logs[f'{prefix}loss'])}")
    shares = [logs.pop(f"masked_{name}", None) for name in MASKING_STRATEGIES]
    if None not in shares:
        parts.append(f"masks {'/'.join(f'{100 * share:.0f}' for share in shares)} %")  # type: ignore[operator]
    for name, value in logs.items():
        short = name.removeprefix(prefix)
        is_timing = short in ("runtime", "samples_per_second", "steps_per_second")
        if (
            short in _LEFT_OUT
            or is_timing
            or not isinstance(value, (int, float))
            or (losses and short == "learning_rate")
        ):
            continue
        if short == "knn_accuracy":
            parts.append(f"knn {100 * value:.1f} %")
        elif short == "learning_rate":
            parts.append(f"rate {value:.2g}")
        elif value or short != "masked_fallback":
            parts.append(f"{short} {_number(value)}")
    return "  ".join(parts)


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.3f}" if abs(value) < 1 else f"{value:.2f}"


def readable_time(seconds: float) -> str:
    """`45 s`, `12 min` or `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class LineProgressCallback(ProgressCallback):
    """transformers' bar, with lines in place of dictionaries."""

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero and self.training_bar is not None:
            self.training_bar.write(format_log(logs, state.global_step, state.max_steps))


class LinePrinterCallback(PrinterCallback):
    """The lines alone, where `disable_tqdm` is set."""

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            print(format_log(logs, state.global_step, state.max_steps), flush=True)


def use_lines(trainer: Trainer) -> None:
    """Let a trainer print lines. Its bar in a notebook stays."""
    for old, new in ((ProgressCallback, LineProgressCallback), (PrinterCallback, LinePrinterCallback)):
        if any(type(callback) is old for callback in trainer.callback_handler.callbacks):
            trainer.remove_callback(old)
            trainer.add_callback(new)


class AnnouncementCallback(TrainerCallback):
    """
    Says at the start what a run is about to do, and after a few steps how long that takes.

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
            epochs = "" if args.max_steps > 0 else f" ({args.num_train_epochs:g} epochs)"
            begun = f", from step {state.global_step} on" if state.global_step else ""
            logger.info(
                f"{self.facts} {state.max_steps} steps of {batch} images{epochs}{begun} on {args.device}, learning "
                f"rate {args.learning_rate:.2g}."
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        done = state.global_step - self.first_step
        if done == 1:
            self.started = time.perf_counter()
        if done == min(FEW_STEPS, state.max_steps - self.first_step) and done > 1 and state.is_world_process_zero:
            per_step = (time.perf_counter() - self.started) / (done - 1)
            left = per_step * (state.max_steps - state.global_step)
            logger.info(f"{per_step:.2g} s a step: about {readable_time(left)} to go, without evaluations.")
