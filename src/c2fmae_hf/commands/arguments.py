"""Command-line arguments: recipes, options that override them, and short help."""

from __future__ import annotations

import argparse
import difflib
import inspect
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import HfArgumentParser, TrainingArguments
from transformers.hf_argparser import string_to_bool
from transformers.trainer_utils import get_last_checkpoint

from ..publishing.model_card import CardFacts
from ..training.publishing_trainer import FULL_EVAL
from ..utils.files import check_writable


RECIPES = Path(__file__).resolve().parents[1] / "recipes"
RECIPE_SUFFIXES = (".yaml", ".yml", ".json")
#: Words that transformers reads as true or false.
BOOLEANS = ("yes", "true", "t", "y", "1", "no", "false", "f", "n", "0")
#: The arguments of transformers that `--help` shows.
COMMON = (
    "output_dir",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "warmup_steps",
    "bf16",
    "dataloader_num_workers",
    "eval_strategy",
    "save_steps",
    "seed",
    "use_cpu",
    "resume_from_checkpoint",
    "push_to_hub",
)
#: Shorter words than transformers' own.
HELP = {
    "output_dir": "Folder for all results.",
    "num_train_epochs": "Passes over the training rows.",
    "max_steps": "Steps, instead of epochs.",
    "per_device_train_batch_size": "Batch size on each device.",
    "gradient_accumulation_steps": "Batches per optimizer step.",
    "warmup_steps": "Warm-up steps of the learning rate; below 1, a share of all steps.",
    "dataloader_num_workers": "Processes that load data.",
    "eval_strategy": "When to evaluate: no, steps or epoch.",
    "save_steps": "Steps between checkpoints.",
    "seed": "Random seed.",
    "use_cpu": "Train on the CPU.",
    "resume_from_checkpoint": "A checkpoint to continue from; 'last' takes the newest in output_dir.",
    "push_to_hub": "Publish the model when training ends; see also the hub_* options.",
}


def find_checkpoint(args: TrainingArguments) -> str | None:
    """
    The checkpoint to resume from: the path in `resume_from_checkpoint`, or for `last` or `true` the newest one in
    `output_dir`, if there is one.
    """
    resume = args.resume_from_checkpoint
    if resume in (None, "false", "False", False):
        return None
    if resume in ("last", "true", "True", True):
        folder = str(args.output_dir)
        return get_last_checkpoint(folder) if Path(folder).is_dir() else None
    return str(resume)


def check_output_dir(args: TrainingArguments) -> None:
    """
    Check that the output folder can be written to and holds no checkpoints of another run.

    Raises:
        `OSError`: if it cannot be written to.
        `ValueError`: if it has checkpoints, which would be lost, and the run does not resume from one.
    """
    folder = str(args.output_dir)
    if args.should_save:
        check_writable(folder)
    checkpoint = get_last_checkpoint(folder) if Path(folder).is_dir() else None
    if checkpoint is not None and args.resume_from_checkpoint in (None, "false", "False", False):
        raise ValueError(
            f"output_dir: {checkpoint} exists already. Pass --resume_from_checkpoint last to continue from it, or "
            "choose another output_dir"
        )


@dataclass
class HubArguments:
    """Publishing."""

    hub_license: str | None = field(
        default=None,
        metadata={"help": "Licence of the weights, as the Hub names it; by default apache-2.0."},
    )
    hub_license_file: str | None = field(
        default=None, metadata={"help": "Text of the licence, unless it is apache-2.0."}
    )

    def publishing(self) -> dict[str, Any]:
        """Arguments of [`~c2fmae_hf.training.publishing_trainer.PublishingTrainer`]."""
        text = Path(self.hub_license_file).read_text(encoding="utf-8") if self.hub_license_file else None
        return {"card_facts": CardFacts(license=self.hub_license), "license_text": text}


def pick_device(name: str | None) -> torch.device:
    """
    The device of that name. By default a GPU if there is one, else the CPU.

    Raises:
        `ValueError`: if it cannot be used.
    """
    device = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(1, device=device).device
    except (AssertionError, RuntimeError) as error:  # PyTorch has no such device
        raise ValueError(f"device: {device!r} cannot be used: {str(error).splitlines()[0]}") from None


# Recipes


def recipe_names(command: str) -> list[str]:
    """Recipes of a command that come with the package."""
    return sorted(path.stem for path in (RECIPES / command).glob("*.yaml"))


def read_recipe(command: str, name: str) -> dict[str, Any]:
    """
    Names and values of a recipe.

    Args:
        name (`str`): A YAML or JSON file, or one that comes with the package (see [`recipe_names`]).

    Raises:
        `ValueError`: if the file cannot be read, or there is no such recipe; the message lists the recipes.
    """
    if name in recipe_names(command):
        text = (RECIPES / command / f"{name}.yaml").read_text(encoding="utf-8")
    elif name.endswith(RECIPE_SUFFIXES) and Path(name).is_file():
        text = Path(name).read_text(encoding="utf-8")
    else:
        names = ", ".join(recipe_names(command)) or "none"
        raise ValueError(f"recipe: expected a YAML or JSON file, or one of: {names}; got {name!r}")
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{name}: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{name}: expected names and values, got {type(values).__name__}")
    return values


def has_option(words: Sequence[str], *names: str) -> bool:
    """Whether the words of a command line set one of these options."""
    given = {word.partition("=")[0].lstrip("-").replace("-", "_") for word in words if word.startswith("--")}
    return not given.isdisjoint(names)


def find_recipe(words: Sequence[str]) -> str | None:
    """The recipe that the words of a command line name."""
    if words and words[0].endswith(RECIPE_SUFFIXES):
        return words[0]
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--recipe")
    return finder.parse_known_args(words)[0].recipe


# Help


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the description's line breaks; shows one spelling per option, and its default if that is informative."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=36, width=min(shutil.get_terminal_size((118, 0)).columns, 118))

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        if action.nargs == 0:
            return action.option_strings[0]
        return f"{action.option_strings[0]} {self._format_args(action, action.dest.rpartition('_')[2].upper())}"

    def _get_help_string(self, action: argparse.Action) -> str | None:
        says_nothing = action.default in (None, False, argparse.SUPPRESS, [], "", -1) or "default" in (
            action.help or ""
        )
        return action.help if says_nothing else f"{action.help} (default: %(default)s)"


class CommandParser(argparse.ArgumentParser):
    """A parser that suggests the nearest option for an unknown one."""

    def __init__(self, command: str, description: str | None) -> None:
        super().__init__(
            prog=f"c2fmae {command}", description=description, formatter_class=_HelpFormatter, allow_abbrev=False
        )

    def parse_args(self, args=None, namespace=None):  # type: ignore[override]
        namespace, words = self.parse_known_args(args, namespace)
        refuse_unknown(self, words)
        return namespace


def refuse_unknown(parser: argparse.ArgumentParser, words: Sequence[str], may_have_words: bool = False) -> None:
    """Exit with a message if words are left over; for an unknown option, suggest the nearest one."""
    for word in words:
        if word.startswith("--"):
            name = word.partition("=")[0]
            near = difflib.get_close_matches(name, parser._option_string_actions, n=1)
            parser.error(f"unknown option {name}" + (f"; did you mean {near[0]}?" if near else ""))
    if words and not may_have_words:
        parser.error(f"unexpected words: {' '.join(words)}")


class _Parser(HfArgumentParser):
    """Options of dataclasses. `own_fields` are shown by `--help`, the library's only by `--help-all`."""

    def __init__(self, groups: Sequence[type], **options: Any) -> None:
        # No abbreviations: `hide_tokens` would miss an abbreviated --hub_token in records.
        super().__init__(tuple(groups), formatter_class=_HelpFormatter, allow_abbrev=False, **options)  # type: ignore[arg-type]
        self.is_trainer = any(issubclass(group, TrainingArguments) for group in groups)
        own = {one.name for group in groups for one in fields(group) if not issubclass(group, TrainingArguments)}
        library = {one.name for one in fields(TrainingArguments)}
        own |= {name for group in groups for name in inspect.get_annotations(group) if name not in library}
        self.own_fields = {*own, *COMMON, "help", "help_all", "recipe"}
        for action in self._actions:
            if action.type is string_to_bool and action.nargs is None:  # of `bool | None`
                action.nargs, action.const = "?", True
            action.help = HELP.get(action.dest, action.help)
            if action.help is not None:  # of transformers, with line breaks and signs that argparse reads
                action.help = " ".join(action.help.replace("%", "%%").split())

    def shorten(self) -> None:
        """Hide the library's options, and the negations of those that are on by default."""
        for action in self._actions:
            if action.dest not in self.own_fields or action.option_strings[:1] == [f"--no_{action.dest}"]:
                action.help = argparse.SUPPRESS


def parse_arguments(
    groups: Sequence[type],
    args: Sequence[str] | None = None,
    description: str | None = None,
    *,
    command: str,
    positionals: Sequence[str] = (),
    required: Sequence[str] = (),
    check: Callable[..., str | None] | None = None,
    **defaults: Any,
) -> tuple[Any, ...]:
    """
    Dataclasses filled from, in falling order of precedence: the command line, the recipe, `defaults`, and the
    dataclasses' own defaults.

    Args:
        groups: Dataclasses as for `HfArgumentParser`; the first line of a docstring is the title of its options.
        args: Of the command line; by default the process's own.
        description (`str`, *optional*): Shown by `--help`.
        command (`str`): Its name, for messages and recipes.
        positionals: Fields that words without an option fill, in this order; a field that is a list takes the rest.
        required: Fields that must not end up as `None`.
        check (*optional*): Given the instances, says what is wrong with them, or returns `None`.

    Returns:
        One instance per group. Mistakes end the program with a message, as those of the command line do.
    """
    for group in groups:
        title = (group.__doc__ or group.__name__).strip().partition("\n")[0].rstrip(".")
        group._argument_group_name = "training" if issubclass(group, TrainingArguments) else title  # type: ignore[attr-defined]
    words = [f"[{name.upper()}{' ...' if name in _list_fields(groups) else ''}]" for name in positionals]
    parser = _Parser(
        groups, prog=f"c2fmae {command}", usage=" ".join(["%(prog)s", *words, "[options]"]), description=description
    )
    names = ", ".join(recipe_names(command))
    parser.add_argument("--recipe", help=f"A YAML or JSON file{', or one of: ' if names else ''}{names}.")
    if parser.is_trainer:
        parser.add_argument("--help-all", action="help", help="Show the options of transformers' Trainer, too.")
        defaults.setdefault("output_dir", f"runs/{command}")
    args = list(sys.argv[1:] if args is None else args)
    if "--help-all" not in args:
        parser.shorten()
    parser.set_defaults(**defaults)

    if args and args[0].endswith(RECIPE_SUFFIXES):
        args.insert(0, "--recipe")
    _apply_recipe(parser, command, groups, args)
    args = complete_switches(parser, args)
    *parsed, words = parser.parse_args_into_dataclasses(args, return_remaining_strings=True)
    parsed = parsed[: len(groups)]
    refuse_unknown(parser, words, may_have_words=True)
    _fill_positionals(parser, groups, parsed, [name for name in positionals if not has_option(args, name)], words)
    mistake = find_missing(parsed, required, positionals) or find_lone_processes(parsed) or find_sharding(parsed)
    mistake = mistake or find_full_eval(parsed)
    mistake = mistake or (check(*parsed) if check is not None else None)
    if mistake:
        parser.error(mistake)
    return tuple(parsed)


def find_missing(parsed: Sequence[Any], required: Sequence[str], positionals: Sequence[str]) -> str | None:
    """A message if a required field is `None`."""
    given = {one.name: getattr(instance, one.name) for instance in parsed for one in fields(instance)}
    for name in required:
        if given[name] is None:
            return f"expected {name.upper()} or --{name}" if name in positionals else f"--{name} is required"
    return None


def find_lone_processes(parsed: Sequence[Any]) -> str | None:
    """A message if a launcher started several processes that would each train by themselves."""
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started > 1 and any(isinstance(one, TrainingArguments) and one.world_size == 1 for one in parsed):
        return f"{started} processes were started where there is no GPU: add --use_cpu, or each trains by itself"
    return None


def find_sharding(parsed: Sequence[Any]) -> str | None:
    """A message if weights would be sharded, since a command's results are made by one process, of whole weights."""
    launched = any(os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true" for name in ("FSDP", "DEEPSPEED"))
    for one in parsed:
        if isinstance(one, TrainingArguments) and (one.fsdp or one.deepspeed or launched):
            return (
                "--fsdp and --deepspeed: results are made of whole weights; to shard them, use the Trainer in Python"
            )
    return None


def find_full_eval(parsed: Sequence[Any]) -> str | None:
    """A message if evaluation would change the weights."""
    asked = (isinstance(one, TrainingArguments) and (one.bf16_full_eval or one.fp16_full_eval) for one in parsed)
    return FULL_EVAL if any(asked) else None


def complete_switches(parser: argparse.ArgumentParser, words: Sequence[str]) -> list[str]:
    """Write `--knn model` as `--knn true model`: argparse would take the word that follows for the switch's value."""
    completed: list[str] = []
    for position, word in enumerate(words):
        completed.append(word)
        action = parser._option_string_actions.get(word)
        following = words[position + 1].lower() if position + 1 < len(words) else ""
        if action is not None and action.nargs == "?" and action.const is True and following not in BOOLEANS:
            completed.append("true")
    return completed


def _list_fields(groups: Sequence[type]) -> set[str]:
    return {one.name for group in groups for one in fields(group) if "list" in str(one.type)}


def _apply_recipe(parser: _Parser, command: str, groups: Sequence[type], args: list[str]) -> None:
    """Take the recipe out of the words, and make its values the parser's defaults."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--recipe")
    found, rest = finder.parse_known_args(args)
    args[:] = rest
    if found.recipe is None:
        return
    try:
        values = read_recipe(command, found.recipe)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    known = {one.name for group in groups for one in fields(group)}
    for name in sorted(values.keys() - known):
        near = difflib.get_close_matches(name, known, n=1)
        parser.error(f"{found.recipe}: unknown argument {name!r}" + (f"; did you mean {near[0]}?" if near else ""))
    if has_option(args, "base_learning_rate"):  # which a learning rate would override
        values.pop("learning_rate", None)
    # Options that hold a mapping are JSON on the command line.
    parser.set_defaults(
        **{name: json.dumps(value) if isinstance(value, dict) else value for name, value in values.items()}
    )


def _fill_positionals(
    parser: _Parser, groups: Sequence[type], parsed: Sequence[Any], positionals: Sequence[str], words: Sequence[str]
) -> None:
    lists = _list_fields(groups)
    words = list(words)
    for name in positionals:
        if not words:
            break
        value: Any = words.pop(0)
        if name in lists:
            value, words = [value, *words], []
        owner = next(instance for instance in parsed if name in {one.name for one in fields(instance)})
        setattr(owner, name, value)
    refuse_unknown(parser, words)
