"""
The fast tests in an environment of each Python, with the newest and with the oldest versions that setup.py allows.

    python .ci/matrix.py                                            # 3.10 to 3.13, newest and floors
    python .ci/matrix.py --pythons 3.12 /opt/python3.13/bin/python --versions newest -- tests/test_modeling.py

Needs the standard library alone. uv, installed on the first call, finds each Python (or fetches it), resolves and
installs; environments are kept in `.venvs/<python>-<versions>` and made anew when setup.py changes. What follows `--`
goes to pytest in place of the fast tests. Prints a table and writes it as `.venvs/matrix.json`; fails when a test does
or when an environment could not be made.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path
from typing import Any
from xml.etree import ElementTree


ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".venvs"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
RESOLUTIONS = {"newest": "highest", "floors": "lowest-direct"}
SHOWN = ("torch", "torchvision", "transformers", "timm", "huggingface-hub", "datasets", "numpy")
FAST = ("-m", "not slow", "tests")


def uv() -> Path:
    """The installer, in an environment of its own."""
    found = shutil.which("uv")
    if found:
        return Path(found)
    own = FOLDER / "uv" / "bin" / "uv"
    if not own.is_file():
        venv.create(own.parents[1], with_pip=True)
        subprocess.run([own.parent / "python", "-m", "pip", "install", "--quiet", "uv"], check=True)
    return own


def make_environment(python: str, versions: str) -> Path:
    """
    The interpreter of an environment with this package and what its tests need.

    Raises:
        `subprocess.CalledProcessError`: when uv finds no such Python or no set of versions that fits.
    """
    wanted = hashlib.sha256((ROOT / "setup.py").read_bytes()).hexdigest()
    name = python
    if os.sep in python:
        code = "import sys; print('%d.%d' % sys.version_info[:2])"
        name = subprocess.run([python, "-c", code], check=True, text=True, capture_output=True).stdout.strip()
    folder = FOLDER / f"{name}-{versions}"
    stamp, interpreter = folder / ".made_of", folder / "bin" / "python"
    if stamp.is_file() and stamp.read_text() == wanted:
        return interpreter
    call = [uv(), "--quiet"]
    subprocess.run([*call, "venv", "--clear", "--python", python, folder], check=True, text=True, capture_output=True)
    install = [*call, "pip", "install", "--python", interpreter, "--resolution", RESOLUTIONS[versions]]
    subprocess.run([*install, "--editable", f"{ROOT}[dev]"], check=True, text=True, capture_output=True)
    check = "import torchvision, timm, transformers, c2fmae_hf"
    subprocess.run([interpreter, "-c", check], check=True, text=True, capture_output=True)
    stamp.write_text(wanted)
    return interpreter


def run_tests(interpreter: Path, versions: str, pytest: list[str]) -> dict[str, Any]:
    """Counts of the tests, and the versions that they ran with."""
    report = interpreter.parents[1] / "tests.xml"
    report.unlink(missing_ok=True)
    # What old versions warn of is not ours to mend; what the newest deprecate is (pyproject.toml makes errors of it).
    options = ["-o", "filterwarnings=ignore"] if versions == "floors" else []
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    started = time.monotonic()
    call = [interpreter, "-m", "pytest", "-q", f"--junit-xml={report}", *options, *(pytest or FAST)]
    returned = subprocess.run(call, cwd=ROOT, env=environment).returncode
    code = (
        "import json, platform; from importlib.metadata import version; "
        f"print(json.dumps([platform.python_version(), {{name: version(name) for name in {SHOWN!r}}}]))"
    )
    python, found = json.loads(subprocess.run([interpreter, "-c", code], check=True, capture_output=True).stdout)
    counts = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    if report.is_file():
        suite = ElementTree.parse(report).getroot().find("testsuite")
        counts = {name: int(suite.get(name, 0)) for name in counts} if suite is not None else counts
    failed = counts["failures"] + counts["errors"]
    return {
        "python": python,
        "passed": counts["tests"] - failed - counts["skipped"],
        "failed": failed,
        "skipped": counts["skipped"],
        "seconds": round(time.monotonic() - started),
        "ok": returned == 0 and counts["tests"] > 0,
        "versions": found,
    }


def table(rows: list[dict[str, Any]]) -> str:
    head = ["Python", "versions", *SHOWN, "passed", "failed", "skipped", "seconds"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        if "error" in row:
            lines.append([row["asked"], row["resolution"], f"not installed: {row['error']}", *[""] * (len(head) - 3)])
            continue
        counts = [str(row[name]) for name in ("passed", "failed", "skipped", "seconds")]
        lines.append([row["python"], row["resolution"], *(row["versions"][name] for name in SHOWN), *counts])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pythons", nargs="+", default=list(PYTHONS), help="versions, or paths of interpreters")
    parser.add_argument("--versions", nargs="+", choices=list(RESOLUTIONS), default=list(RESOLUTIONS))
    parser.add_argument("--install_only", action="store_true", help="make the environments, and run nothing")
    parser.add_argument("pytest", nargs="*", help="after `--`: what pytest is called with")
    options = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    rows: list[dict[str, Any]] = []
    for python in options.pythons:
        for versions in options.versions:
            row: dict[str, Any] = {"asked": python, "resolution": versions}
            print(f"Python {python}, {versions}", flush=True)
            try:
                interpreter = make_environment(python, versions)
            except subprocess.CalledProcessError as error:
                said = (error.stderr or "").strip().splitlines()
                row["error"] = said[-1].strip() if said else f"exit status {error.returncode}"
                print(error.stderr, file=sys.stderr, flush=True)
            else:
                if options.install_only:
                    continue
                row.update(run_tests(interpreter, versions, options.pytest))
            rows.append(row)
            unfinished = FOLDER / "matrix.json.part"
            unfinished.write_text(json.dumps(rows, indent=1))
            unfinished.replace(FOLDER / "matrix.json")
    print(table(rows))
    if not all(row.get("ok") for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
