"""Arguments of the example scripts: a YAML or JSON file, and options of the command line over it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from .hub import HubError
from .model_card import CardFacts


def find_checkpoint(args: TrainingArguments) -> str | None:
    """
    The checkpoint that `resume_from_checkpoint` means: a path, or with `last` or `true` the last one in `output_dir`,
    if there is any.
    """
    resume = args.resume_from_checkpoint
    if resume in (None, "false", "False", False):
        return None
    if resume in ("last", "true", "True", True):
        folder = str(args.output_dir)
        return get_last_checkpoint(folder) if Path(folder).is_dir() else None
    return str(resume)


@dataclass
class HubArguments:
    """What publishing needs to know besides the `hub_*` arguments of transformers."""

    hub_license: str | None = field(
        default=None,
        metadata={"help": "Licence of the weights, as the Hub names it; by default apache-2.0."},
    )
    hub_license_file: str | None = field(default=None, metadata={"help": "Its text, for all but apache-2.0."})

    def publishing(self) -> dict[str, Any]:
        """Arguments of [`~c2fmae_hf.hub.PublishingTrainer`]."""
        text = Path(self.hub_license_file).read_text(encoding="utf-8") if self.hub_license_file else None
        return {"card_facts": CardFacts(license=self.hub_license), "license_text": text}


def run_script(main: Callable[[], Any]) -> None:
    """A script as a program: what a Hub refuses is one line, without a traceback."""
    try:
        main()
    except HubError as error:
        raise SystemExit(str(error)) from None


class _HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """The description as it is written, and defaults but for those that say nothing."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def parse_arguments(
    groups: Sequence[type],
    args: Sequence[str] | None = None,
    description: str | None = None,
    required: Sequence[str] = (),
    check: Callable[..., str | None] | None = None,
    **defaults: Any,
) -> tuple[Any, ...]:
    """
    Dataclasses filled from, in falling order of precedence: the command line, the file that its first argument may
    name, `defaults`, and the dataclasses' own defaults.

    Args:
        groups: Dataclasses as for `HfArgumentParser`.
        args: Of the command line; by default the process's own.
        description (`str`, *optional*): Shown by `--help`.
        required: Fields that must not end up as `None`.
        check (*optional*): Given the instances, says what is wrong with them, or returns `None`.

    Returns:
        One instance per group. Mistakes end the program with a message, as those of the command line do.
    """
    classes: Any = tuple(groups)
    # Abbreviated options would escape what hides tokens in records.
    parser = HfArgumentParser(classes, description=description, formatter_class=_HelpFormatter, allow_abbrev=False)
    for action in parser._actions:
        if action.dest in required:
            action.help = f"{action.help} Required."
    args = list(sys.argv[1:] if args is None else args)
    parser.set_defaults(**defaults)
    if args and args[0].endswith((".yaml", ".yml", ".json")):
        path = Path(args.pop(0))
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            parser.error(f"{path}: {error}")
        if not isinstance(values, dict):
            parser.error(f"{path}: expected names and values, got {type(values).__name__}")
        unknown = sorted(set(values) - {field.name for group in groups for field in fields(group)})
        if unknown:
            parser.error(f"{path}: unknown arguments {unknown}")
        # Options that hold a mapping are JSON on the command line.
        parser.set_defaults(
            **{name: json.dumps(value) if isinstance(value, dict) else value for name, value in values.items()}
        )
    parsed = parser.parse_args_into_dataclasses(args)
    given = {field.name: getattr(instance, field.name) for instance in parsed for field in fields(instance)}
    for name in required:
        if given[name] is None:
            parser.error(f"--{name} is required")
    mistake = check(*parsed) if check is not None else None
    if mistake:
        parser.error(mistake)
    return parsed
