"""What importing the package does, and does not."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

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


# By which a file of a stranger could run code, and what is refused in their arguments.
RUNS_CODE = {"eval", "exec", "__import__", "os.system", "pickle.load", "pickle.loads", "marshal.loads", "yaml.load"}
RUNS_CODE |= {"numpy.load", "np.load", "joblib.load", "dill.load", "subprocess.getoutput"}
REFUSED_ARGUMENTS = {("shell", True), ("trust_remote_code", True), ("allow_pickle", True), ("weights_only", False)}


def test_nothing_runs_code_of_files(repository):
    """In the package and the scripts: no pickle, no `eval`, no remote code, PyTorch's files with `weights_only`."""
    for path in sorted([*(repository / "src").rglob("*.py"), *(repository / "examples").rglob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name, where = ast.unparse(node.func), f"{path.name}:{node.lineno}"
            assert name not in RUNS_CODE, where
            given = {(one.arg, getattr(one.value, "value", None)) for one in node.keywords}
            assert not given & REFUSED_ARGUMENTS, where
            if name == "torch.load":
                assert ("weights_only", True) in given, where


def modules_in_order(repository: Path) -> list[str]:
    """CONTRIBUTING's table of modules, in the order in which data flows."""
    section = (repository / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Where things live")[2]
    rows = re.findall(r"^\| (`.*?) \|", section.partition("\n## ")[0], re.MULTILINE)
    return [name for row in rows for name in re.findall(r"`(\w+)/?`", row)]


def test_modules_import_only_from_those_above_them(repository):
    order = modules_in_order(repository)
    folder = repository / "src/c2fmae_hf"
    names = {path.stem for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert set(order) == names - {"__init__"}
    assert len(order) == len(set(order))
    for position, name in enumerate(order):
        path = folder / name
        sources = [path.with_suffix(".py")] if path.with_suffix(".py").is_file() else sorted(path.glob("*.py"))
        for source in sources:
            for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
                # One dot in a module, two in a file of a folder.
                if isinstance(node, ast.ImportFrom) and node.level == 1 + (source.parent != folder):
                    imported = [node.module.partition(".")[0]] if node.module else [one.name for one in node.names]
                    for other in imported:
                        assert order.index(other) < position, f"{source.name} imports {other}, which is below it"
