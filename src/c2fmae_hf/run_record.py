"""What a run was: its command, arguments, data, weights, versions, hardware and time. Model cards are made of it."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn


PACKAGES = ("c2fmae-hf", "torch", "torchvision", "transformers", "timm", "datasets", "accelerate")
RUN_FILE = "run.json"
ARCHITECTURE_FIELDS = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "patch_size", "image_size"),
    *("num_channels", "qkv_bias", "granularities", "input_granularities", "decoder_type", "decoder_hidden_size"),
    *("decoder_num_hidden_layers", "decoder_num_attention_heads", "decoder_intermediate_size", "mask_ratio"),
)
TOKEN_PATTERN = re.compile(r"hf_(?:[A-Za-z0-9]{20,}|(?:oauth|jwt)_[\w.-]{20,})")
_PASSWORD_PATTERN = re.compile(r"(?<=://)[^/\s]+@")
# What follows an address's question mark may be a signature or a key.
_QUERY_PATTERN = re.compile(r"(\w+://[^\s?#]+)\?[^\s#]*")
_SECRET_OPTION = re.compile(r"--\S*(token|secret|passw|api[-_]?key)")


class RunRecord:
    """
    Begins when it is made.

    Args:
        task (`str`): What is done, such as `pretraining`.
        arguments: Dataclasses of arguments; those that differ from their defaults are kept, tokens never.
        rows: How many images there are to train on, `train`, and to judge by, `validation`.
        splits: What the data calls these two.
        starting_model (*optional*): The model before training, whose fingerprints are kept.
        details: Further facts, such as the curriculum.
    """

    def __init__(
        self,
        task: str,
        arguments: Sequence[Any],
        rows: Mapping[str, int | None],
        splits: Mapping[str, str],
        starting_model: nn.Module | None = None,
        **details: Any,
    ) -> None:
        self._clock = time.perf_counter()
        changed = {name: value for group in arguments for name, value in changed_arguments(group).items()}
        self.content: dict[str, Any] = {
            "task": task,
            "command": hide_tokens(sys.argv),
            "arguments": changed,
            # Now, while it can be seen whether a name is that of a local folder.
            "data": data_name(changed.get("dataset_name") or changed.get("coco_dir")),
            "base_model": hub_name(changed.get("model") or changed.get("model_name_or_path")),
            "rows": dict(rows),
            "splits": dict(splits),
            **details,
            "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "versions": versions(),
            "hardware": hardware(),
        }
        if starting_model is not None:
            self.content["starting_encoder"] = encoder_fingerprint(starting_model)
            self.content["starting_weights"] = weights_fingerprint(starting_model)

    def finish(self, model: nn.Module | None = None, **details: Any) -> dict[str, Any]:
        """
        The record, as JSON can hold it.

        Args:
            model (*optional*): The model after training, as it is saved, whose fingerprints are kept.
            details: Further facts.
        """
        content = {**self.content, **details, "seconds": round(time.perf_counter() - self._clock, 1)}
        if model is not None:
            content["encoder"] = encoder_fingerprint(model)
            content["weights"] = weights_fingerprint(model)
            content["architecture"] = architecture_of(getattr(model, "config", None))
        return content


def changed_arguments(group: Any) -> dict[str, Any]:
    """
    Fields of a dataclass that differ from their defaults, but for tokens, objects, and what `__post_init__` makes of
    an empty default (`None` to `False`). No second instance is made to compare with: one of `TrainingArguments` would
    reset the state that the processes of a run share.
    """
    changed = {}
    for field in fields(group):
        value = getattr(group, field.name)
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        is_hidden = "token" in field.name or field.name.startswith("_") or not field.init
        is_plain = isinstance(value, (bool, int, float, str, list, tuple, dict, os.PathLike)) or value is None
        if is_hidden or not is_plain or value == default or not (value or default):
            continue
        changed[field.name] = hide_secrets(_plain(value))
    return changed


def _plain(value: Any) -> Any:
    """As JSON can hold it."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def hide_secrets(content: Any) -> Any:
    """
    Strings, on their own or in lists and mappings, without access tokens and, of addresses, without passwords and what
    follows a question mark.
    """
    if isinstance(content, list):
        return [hide_secrets(item) for item in content]
    if isinstance(content, dict):
        return {key: hide_secrets(value) for key, value in content.items()}
    if isinstance(content, str):
        content = _QUERY_PATTERN.sub(r"\1?***", TOKEN_PATTERN.sub("***", content))
        return _PASSWORD_PATTERN.sub("***@", content)
    return content


def hide_tokens(command: Sequence[str]) -> str:
    """A command line whose program is given by its name alone, and whose tokens and passwords are hidden."""
    words = [Path(command[0]).name, *command[1:]]
    for index, word in enumerate(words):
        option, _, value = word.partition("=")
        if _SECRET_OPTION.match(option):
            if value:
                words[index] = f"{option}=***"
            elif index + 1 < len(words):
                words[index + 1] = "***"
    return shlex.join(hide_secrets(words))


# An address, which stays as it is; or where a path begins that is not within another one or a word: at a root, in a
# home, on a drive, or above the current folder, also right after a short option (-d/home/me).
_FOLDER_PATTERN = re.compile(
    r"""
    (?P<kept>(?!file:)\b[A-Za-z][\w+.-]*://[^\s"']*)
    | (?:(?<![\w.~/\\*?\]}-])|(?P<option>(?:^|(?<=\s))-[A-Za-z]))
      (?P<root>file:/+|~[\w.-]*[/\\]|[A-Za-z]:[/\\]|\\\\|/|(?:\.\.[/\\])+)
      (?P<rest>[^\s"'`,;:|<>()\[\]{}]+)
    """,
    re.VERBOSE,
)


def hide_folders(content: Any) -> Any:
    """
    Records for other eyes: of absolute paths, and of those above the current folder, which hold the names of users and
    machines, only the last part stays, as in `.../photos`, wherever they stand in a string. A string that is a path
    may have spaces in it; one in the middle of a string ends with the first, unless it is quoted.
    """
    if isinstance(content, list):
        return [hide_folders(item) for item in content]
    if isinstance(content, dict):
        return {
            hide_folders(key): _hide_in_command(value)
            if key == "command" and isinstance(value, str)
            else hide_folders(value)
            for key, value in content.items()
        }
    return _hide_in_string(content) if isinstance(content, str) else content


def _hide_in_command(command: str) -> str:
    try:
        words = shlex.split(command)
    except ValueError:  # a quotation mark that stands alone
        return _hide_in_string(command)
    return shlex.join(map(_hide_in_string, words))


def _hide_in_string(text: str) -> str:
    # The whole of what follows an option's or a field's name, spaces included.
    named = re.fullmatch(r"([\w-]+=)?(.*)", text, re.DOTALL)
    name, value = (named[1] or "", named[2]) if named else ("", text)
    start = _FOLDER_PATTERN.match(value)
    if start is not None and start["root"] and not re.search(r"[\"'`\n]", value):
        return f"{name}{start['option'] or ''}.../{_last_part(value)}"
    parts = re.split(r"""("[^"\n]*"|'[^'\n]*')""", text)
    for index, part in enumerate(parts):
        if index % 2 and (found := _FOLDER_PATTERN.match(part[1:-1])) and found["root"]:
            parts[index] = f"{part[0]}.../{_last_part(part[1:-1])}{part[-1]}"
        else:
            parts[index] = _FOLDER_PATTERN.sub(_shortened, part)
    return "".join(parts)


def _shortened(found: re.Match) -> str:
    return found["kept"] or f"{found['option'] or ''}.../{_last_part(found['rest'])}"


def _last_part(path: str) -> str:
    if re.fullmatch(r"(?:/|[A-Za-z]:\\)?(?:home|Users)[/\\][^/\\]+[/\\]?", path, re.IGNORECASE):
        return "home"
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def hub_name(name: Any) -> str | None:
    """A model's name on a hub; `None` for a folder, and an architecture without an owner."""
    return name if isinstance(name, str) and name.count("/") == 1 and data_name(name) == name else None


def architecture_of(config: Any) -> dict[str, Any]:
    """What the table of sizes and the card say of a model; of another library's what has the same names."""
    config = getattr(config, "backbone_config", None) or config
    return {name: getattr(config, name) for name in ARCHITECTURE_FIELDS if hasattr(config, name)}


def data_name(dataset: str | None) -> str:
    """A dataset's name: that on a hub, or the last part of a local path."""
    if not dataset:
        return "not recorded"
    is_file = any(character in dataset for character in "*?[") or dataset.endswith((".parquet", ".json", ".csv"))
    is_path = dataset.startswith((".", "/", "~")) or dataset.count("/") != 1 or is_file or Path(dataset).exists()
    if not is_path:
        return dataset
    name = Path(dataset).name.replace("*", "").removesuffix(".parquet").strip("_-")
    return name or Path(dataset).parent.name or "not named"


def versions() -> dict[str, str]:
    """Of Python and of what computes."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """The machine that this process runs on, without its name."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    content: dict[str, Any] = {
        "processor": _processor_name(),
        "cores": cores,
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
    }
    if torch.cuda.is_available():
        content["gpus"] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return content


def _processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@torch.no_grad()
def encoder_fingerprint(model: nn.Module) -> str:
    """
    SHA-256 of the encoder's weights, whatever file, class or device they are in: by it a result is known to be of
    these weights and no others. The table of positions does not count, which is resampled for images of another size.

    Args:
        model: A C2FMAE model; of any other model all weights count.
    """
    prefix = "c2fmae."
    state = model.state_dict()
    if any(prefix in name for name in state):
        state = {name.partition(prefix)[2]: value for name, value in state.items() if prefix in name}
    left_out = ("label_embed.", "pos_embed")
    return _fingerprint({name: value for name, value in state.items() if not name.startswith(left_out)})


@torch.no_grad()
def weights_fingerprint(model: nn.Module) -> str:
    """SHA-256 of all weights under the names of the model's class: heads and decoders count as well."""
    return _fingerprint(model.state_dict())


def _fingerprint(state: Mapping[str, torch.Tensor]) -> str:
    checksum = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        checksum.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        checksum.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return checksum.hexdigest()
