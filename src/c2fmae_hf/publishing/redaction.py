"""Secrets and folders of this machine, taken out of whatever leaves it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any


TOKEN_PATTERN = re.compile(r"hf_(?:[A-Za-z0-9]{20,}|(?:oauth|jwt)_[\w.-]{20,})")
_PASSWORD_PATTERN = re.compile(r"(?<=://)[^/\s]+@")
# What follows an address's question mark may be a signature or a key.
_QUERY_PATTERN = re.compile(r"(\w+://[^\s?#]+)\?[^\s#]*")
_SECRET_OPTION = re.compile(r"--\S*(token|secret|passw|api[-_]?key)")


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
