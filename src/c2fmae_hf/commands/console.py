"""Output that all commands share: the log, the model in words, results and next steps."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
from torch import nn
from tqdm import tqdm
from transformers.utils import logging as transformers_logging


def set_up_output() -> None:
    """
    Print the package's log as plain lines, and no bars for what takes a second. If there are several processes, only
    the first one prints, except for errors and bad rows.
    """
    own = logging.getLogger("c2fmae_hf")
    own.setLevel(logging.INFO)
    if not own.handlers:
        own.addHandler(logging.StreamHandler())  # not to the root: libraries with handlers would print twice
    for client in ("httpx", "httpx2"):  # the Hub's client, by its version, logs addresses that are signed
        logging.getLogger(client).setLevel(logging.WARNING)
    hides_downloads = are_progress_bars_disabled()
    transformers_logging.disable_progress_bar()  # of loading and saving weights, and of downloads
    if not hides_downloads:
        enable_progress_bars()
    if os.environ.get("RANK", "0") != "0":
        be_silent()


def be_silent() -> None:
    """Print errors and the bad rows of this process only; the first process prints everything else."""
    logging.getLogger().setLevel(logging.ERROR)
    logging.getLogger("c2fmae_hf").setLevel(logging.ERROR)
    rows = logging.getLogger("c2fmae_hf.data.rows")
    rows.setLevel(logging.WARNING)
    rows.addFilter(lambda record: record.getMessage().startswith("Skipped"))
    transformers_logging.set_verbosity_error()
    datasets.disable_progress_bars()
    begin = tqdm.__init__

    def begin_hidden(self: tqdm, *args: Any, **options: Any) -> None:
        begin(self, *args, **{**options, "disable": True})

    tqdm.__init__ = begin_hidden  # type: ignore[method-assign]


def model_in_words(name: object, model: nn.Module, *notes: str) -> str:
    """`runs/mine/c2fmae-vit-tiny (C2FMAEModel, 5.5 M parameters)`, with notes in the brackets."""
    parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    return f"{name} ({', '.join([type(model).__name__, f'{parameters:.1f} M parameters', *notes])})"


def type_in(*words: object) -> str:
    """A command line to type, with quotes where the shell needs them."""
    return shlex.join(["c2fmae", *map(str, words)])


def print_results(results: Iterable[str | Path], next_steps: Sequence[str] = ()) -> None:
    """Scores and files that a command made, and what to do with them."""
    print("\nResults:", *(f"  {result}" for result in results), sep="\n")
    if next_steps:
        print("\nNext:", *(f"  {step}" for step in next_steps), sep="\n")


def use_as(task: str, folder: object) -> str:
    """A command line that runs a fine-tuned model on a photograph."""
    code = f'import c2fmae_hf, transformers; print(transformers.pipeline("{task}", "{folder}")("photo.jpg"))'
    return shlex.join(["python", "-c", code])
