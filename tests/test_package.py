"""What importing the package does, and does not."""

from __future__ import annotations

import ast
import re
import subprocess
import sys

import pytest

import c2fmae_hf


SCRIPT = """
import socket, sys

def refuse(*args, **kwargs):
    raise AssertionError("import opened a connection")

socket.socket.connect = refuse
socket.getaddrinfo = refuse
import c2fmae_hf
import timm
from transformers import AutoConfig
assert "c2fmae_vit_base_patch16_224" in timm.list_models()
assert AutoConfig.for_model("c2fmae").hidden_size == 768
print(*sorted({name.split(".")[0] for name in sys.modules} & {"datasets", "evaluate", "matplotlib", "skimage", "ray"}))
"""


def test_import_takes_no_network_and_no_heavy_package():
    result = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []


def test_public_names_exist_and_are_documented():
    for name in c2fmae_hf.__all__:
        value = getattr(c2fmae_hf, name)
        assert isinstance(value, dict) or value.__doc__, name


# By which a file of a stranger could run code or be written anywhere, whatever they are imported as.
RUNS_CODE = re.compile(
    r"(builtins\.)?(eval|exec|compile|__import__)|os\.(system|popen|startfile|exec\w+|(posix_)?spawn\w*)|pty\.spawn"
    r"|runpy\.\w+|subprocess\.get(status)?output|(_?pickle|cPickle|dill|cloudpickle|joblib|marshal)\.(loads?|Unpickler)"
    r"|shelve\.open|pandas\.read_pickle|numpy\.load|yaml\.(load|load_all|full_load\w*|unsafe_load\w*)"
    r"|shutil\.unpack_archive|.*\.(extract|extractall)"
)
# The only value that may be given, and written as it is.
ARGUMENTS = {"shell": False, "trust_remote_code": False, "allow_pickle": False, "weights_only": True}


def imported_names(tree: ast.AST) -> dict[str, str]:
    """What each imported name stands for, in full."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update({one.asname: one.name for one in node.names if one.asname})
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.update({one.asname or one.name: f"{node.module}.{one.name}" for one in node.names})
    return names


def full_name(node: ast.AST, imported: dict[str, str]) -> str:
    """The dotted name of a name or attribute; it begins with a dot if the attribute is that of a value."""
    if isinstance(node, ast.Attribute):
        return f"{full_name(node.value, imported)}.{node.attr}"
    return imported.get(node.id, node.id) if isinstance(node, ast.Name) else ""


def lines_that_run_code(source: str) -> list[int]:
    tree = ast.parse(source)
    imported = imported_names(tree)
    lines = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Name, ast.Attribute)):  # called or handed on
            refused = RUNS_CODE.fullmatch(full_name(node, imported)) is not None
        elif isinstance(node, ast.ImportFrom):
            refused = any(one.name == "*" for one in node.names)
        elif isinstance(node, ast.Call):
            given = {one.arg: getattr(one.value, "value", None) for one in node.keywords}
            refused = any(given[name] is not ARGUMENTS[name] for name in ARGUMENTS.keys() & given)
            refused |= full_name(node.func, imported) == "torch.load" and "weights_only" not in given
        else:
            continue
        if refused:
            lines.add(node.lineno)
    return sorted(lines)


def test_nothing_runs_code_of_files(repository):
    """In the package and the scripts: no pickle, no `eval`, no remote code, PyTorch's files with `weights_only`."""
    for path in sorted([*(repository / "src").rglob("*.py"), *(repository / "examples").rglob("*.py")]):
        assert lines_that_run_code(path.read_text(encoding="utf-8")) == [], path


@pytest.mark.parametrize(
    "source",
    [
        "eval(text)",
        "import builtins; builtins.exec(text)",
        "exec(compile(text, name, 'exec'))",
        "__import__(name)",
        "import pickle; pickle.load(file)",
        "import pickle as p; p.loads(content)",
        "from pickle import load; load(file)",
        "from pickle import load as read; read(file)",
        "from pickle import *; load(file)",
        "import pickle; read = pickle.load",
        "import pickle; pickle.Unpickler(file).load()",
        "import numpy as np; np.load(name)",
        "import numpy as np; np.load(name, allow_pickle=True)",
        "import pandas as pd; pd.read_pickle(name)",
        "import joblib; joblib.load(name)",
        "import shelve; shelve.open(name)",
        "import yaml; yaml.load(text, yaml.Loader)",
        "from yaml import unsafe_load; unsafe_load(text)",
        "import tarfile; tarfile.open(name).extractall(folder)",
        "tar.extractall(folder, filter='data')",
        "archive.extract(member)",
        "import shutil; shutil.unpack_archive(name)",
        "import os; os.system(command)",
        "import os; os.popen(command)",
        "from os import popen; popen(command)",
        "import os; os.execvp(name, arguments)",
        "import os; os.posix_spawn(name, arguments, {})",
        "import subprocess; subprocess.run(command, shell=True)",
        "from subprocess import Popen; Popen(command, shell=1)",
        "import subprocess as s; s.check_output(command, shell=shell)",
        "import subprocess; subprocess.getoutput(command)",
        "import runpy; runpy.run_path(name)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "import torch; torch.load(name)",
        "import torch; torch.load(name, weights_only=False)",
        "from torch import load; load(name)",
    ],
)
def test_what_runs_code_of_files_is_found(source):
    assert lines_that_run_code(source) == [1]


def test_what_runs_no_code_of_files_is_not_found():
    assert not lines_that_run_code(
        """
import json, os, pickle, re, subprocess, tarfile, torch, yaml
json.load(file), yaml.safe_load(text), re.compile(text), image.load(), model.eval(), torch.compile(model)
torch.load(name, weights_only=True), os.path.join(name), tarfile.open(name).extractfile(member)
subprocess.run([name], check=True, shell=False), pickle.UnpicklingError
"""
    )
