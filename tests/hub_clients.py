"""
Processes for tests. Importing the libraries takes seconds, and they read the Hub's address while they are imported. So
one process imports them for a server, and forks a child for each script: a process of its own, which may be killed.
Run as a script, this file is that process.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path


def command(name: str) -> str:
    """Python code that does what `c2fmae <name>` does with the arguments that follow."""
    return f"import sys; from c2fmae_hf.commands.main import main; sys.exit(main(['{name}', *sys.argv[1:]]))"


@dataclass(frozen=True)
class Finished:
    """How a process ended (a negative code is the signal), and what it wrote."""

    code: int
    out: str
    err: str


def client_environment(url: str, home: Path, token: str | None = None) -> dict[str, str]:
    """Variables for a client of the server: nothing of the user's own, and no way to another Hub."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING_FACE_"))}
    return {
        **kept,
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "2",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        **({"HF_TOKEN": token} if token else {}),
    }


class Clients:
    """Runs scripts against one server; waits between tries are short in them."""

    def __init__(self, url: str, home: Path) -> None:
        self.url, self.home = url, home
        self.child: int | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="clients-")
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env=client_environment(url, home),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self,
        script: str | Path,
        *arguments: object,
        token: str | None = None,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> Finished:
        """
        Args:
            script: A file, or Python code.
            cwd (*optional*): Working directory of the process.
        """
        outputs = [Path(self._folder.name) / name for name in ("out", "err")]
        order = {
            "script": str(script),
            "is_file": isinstance(script, Path),
            "arguments": [str(argument) for argument in arguments],
            "environment": {**({"HF_TOKEN": token} if token else {}), **(environment or {})},
            "cwd": str(cwd or Path.cwd()),
            "outputs": [str(path) for path in outputs],
        }
        self._send(json.dumps(order))
        self.child = int(self._receive())
        code = int(self._receive())
        self.child = None
        return Finished(code, *(path.read_text(encoding="utf-8", errors="replace") for path in outputs))

    def kill_child(self) -> None:
        if self.child is not None:
            os.kill(self.child, signal.SIGKILL)

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._process.stdout.close()
        self._folder.cleanup()

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _receive(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the process that starts clients is gone")
        return line


# In the process that forks


def _run_child(order: dict) -> int:
    import runpy
    import time
    import traceback

    for name, descriptor in zip(order["outputs"], (1, 2)):
        opened = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(opened, descriptor)
    os.environ.update(order["environment"])
    os.chdir(order["cwd"])
    sys.argv = [order["script"] if order["is_file"] else "-c", *order["arguments"]]
    sleep: Callable[[float], None] = time.sleep
    time.sleep = lambda seconds: sleep(min(seconds, 0.02))
    try:
        if order["is_file"]:
            runpy.run_path(order["script"], run_name="__main__")
        else:
            exec(compile(order["script"], "<script>", "exec"), {"__name__": "__main__"})
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:
        traceback.print_exc()
        return 130 if isinstance(error, KeyboardInterrupt) else 1
    return 0


def _serve() -> None:
    gc.disable()
    # The libraries, but not this package: scripts that forget to import it must fail.
    import datasets  # noqa: F401
    import evaluate  # noqa: F401
    import scipy.ndimage  # noqa: F401
    import timm  # noqa: F401
    from transformers import AutoImageProcessor, AutoModel, Trainer, pipeline  # noqa: F401

    gc.freeze()  # a child would copy the memory of all these objects by looking for garbage among them
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            gc.enable()
            code = 70
            try:
                code = _run_child(json.loads(line))
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(code)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    _serve()
