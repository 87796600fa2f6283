"""Removal of secrets and local folders from records."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any


TOKEN_PATTERN = re.compile(r"hf_(?:[A-Za-z0-9]{20,}|(?:oauth|jwt)_[\w.-]{20,})")
_PASSWORD_PATTERN = re.compile(r"(?<=://)[^/\s]+@")
# The query of a URL may hold a signature or a key.
_QUERY_PATTERN = re.compile(r"(\w+://[^\s?#]+)\?[^\s#]*")
_SECRET_OPTION = re.compile(r"--\S*(token|secret|passw|api[-_]?key)")


def hide_secrets(content: Any) -> Any:
    """
    Replace access tokens, and the passwords and queries of URLs, in strings, lists and mappings.
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
    """
    A command line for a record: no tokens or passwords, and only the last part of the program and of absolute paths.
    """
    words = [Path(command[0]).name, *command[1:]]
    for index, word in enumerate(words):
        option, equals, value = word.partition("=")
        if _SECRET_OPTION.match(option):
            if equals:
                words[index] = f"{option}=***"
            elif index + 1 < len(words):
                words[index + 1] = "***"
        elif option.startswith("--"):
            words[index] = option + equals + hide_folders(value)
    return shlex.join(hide_folders(hide_secrets(words)))


def hide_folders(content: Any) -> Any:
    """
    Shorten absolute paths, which may name a user or a machine, to their last part, as in `.../photos`, in strings,
    lists and mappings.
    """
    if isinstance(content, list):
        return [hide_folders(item) for item in content]
    if isinstance(content, dict):
        return {key: hide_folders(value) for key, value in content.items()}
    if isinstance(content, str) and (content.startswith("~") or os.path.isabs(content)):
        return f".../{Path(content).name}"
    return content
