"""
The `c2fmae` command.

    c2fmae COMMAND ... [--help]
    python -m c2fmae_hf COMMAND ...            # the same; for torchrun and accelerate launch, after -m
"""

from __future__ import annotations

import difflib
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module, metadata
from pathlib import Path


#: Each command is the module of that name in this folder. It has `main(args)` and, if a result can mean failure,
#: `exit_code(result)`.
COMMANDS = {
    "demo": "pre-train a small model on embedded photographs, offline, and load its encoder",
    "label": "give photographs semantic and instance maps: a dataset for pre-training",
    "validate": "read every row of a labelled dataset, and report what is in it",
    "pretrain": "pre-train on a labelled dataset, or on a folder of photographs",
    "classify": "classify images: fine-tuning, linear probe, or k-nearest neighbours",
    "segment": "fine-tune for semantic segmentation",
    "detect": "fine-tune for object detection and instance segmentation",
    "embed": "write features of photographs to Parquet files",
    "visualize": "draw what a model predicts and attends to, as a page",
    "convert": "convert encoders from timm, ViT, ViTMAE and MAE, and to timm and ViT",
    "export": "export to ONNX and torch.export",
    "push": "publish a model on the Hub, or preview what would be published",
    "app": "try a model on photographs in the browser",
}
PACKAGE = Path(__file__).resolve().parents[1]


def overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, what in COMMANDS.items()]
    return (
        "usage: c2fmae COMMAND ...\n\nC2FMAE: pre-train vision transformers coarse to fine, and use them.\n\n"
        + "\n".join(lines)
        + "\n\nc2fmae COMMAND --help describes a command. Start with: c2fmae demo"
    )


def is_expected(error: BaseException) -> bool:
    """Whether the user can correct the error, and its message says how."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    from ..publishing.hub import HubError

    if type(error) is RuntimeError:  # libraries' messages are not written for users
        return is_ours(error)
    others = (ImportError, FloatingPointError, HubError, SafetensorError, StrictDataclassError)
    return isinstance(error, (ValueError, OSError, *others))


def is_ours(error: BaseException) -> bool:
    """Whether this package raised an error."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and PACKAGE in Path(frames[-1].filename).parents


def explain(error: BaseException) -> str:
    """The error in one line. If another package raised it, also how to see the traceback."""
    text, is_plain = str(error), is_ours(error)
    if text.startswith("Caught ") and "Original Traceback" in text:  # of a data-loading worker
        text, is_plain = text.rpartition(f"\n{type(error).__name__}: ")[2], "/c2fmae_hf/" in text
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    message = " ".join(lines) or type(error).__name__
    return message if is_plain else f"{message} (C2FMAE_TRACEBACK=1 shows where)"


def at_home(word: str) -> str:
    """A word with its `~` replaced, which shells do not do in `--option=~/folder` or within quotes."""
    option, equals, value = word.partition("=")
    if equals and option.startswith("--"):
        return f"{option}={os.path.expanduser(value)}"
    return os.path.expanduser(word)


def run(name: str, args: Sequence[str]) -> int:
    """Run a command. An expected mistake is one line on standard error and exit code 1."""
    try:
        from .console import set_up_output  # here, since it imports much

        set_up_output()
        command = import_module(f".{name}", __package__)
        result = command.main([at_home(word) for word in args])
        return command.exit_code(result) if hasattr(command, "exit_code") else 0
    except KeyboardInterrupt:
        print(f"\nc2fmae {name}: stopped", file=sys.stderr)
        return 130
    except Exception as error:
        if os.environ.get("C2FMAE_TRACEBACK") or not is_expected(error):
            raise
        print(f"c2fmae {name}: error: {explain(error)}", file=sys.stderr)
        return 1


def main(args: Sequence[str] | None = None) -> int:
    """The console script; returns the exit code."""
    args = list(sys.argv[1:] if args is None else args)
    if not args or args[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if args[0] == "--version":
        print(f"c2fmae-hf {metadata.version('c2fmae-hf')}")
        return 0
    name, *rest = args
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        print(f"c2fmae: error: unknown command {name!r}{hint} (c2fmae --help lists them)", file=sys.stderr)
        return 2
    return run(name, rest)
