"""The script that measures on a GPU, on a CPU at tiny sizes: each part ends well and leaves its results."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_every_part_of_the_gpu_script(repository, tmp_path):
    script = repository / "benchmarks/gpu.sh"
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    subprocess.run(["bash", str(script), str(tmp_path), "--dry"], check=True, env=environment, timeout=3600)
    summary = (tmp_path / "summary.txt").read_text()
    logs = "\n".join(path.read_text()[-2000:] for path in tmp_path.glob("*.log"))
    parts = re.findall(r"^(?:step|part) (\w+) ", script.read_text(), flags=re.MULTILINE)
    assert re.findall(r"^(\w+): exit code 0 ", summary, flags=re.MULTILINE) == parts, logs
    results = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert set(parts) - set(results) == {"rows", "pretrain"}
    assert all(content["rows"] for content in results.values())
    assert {"images/s", "share of the matrix rate, %"} <= set(results["base_256_graphs"]["rows"][0])


def test_the_parts_take_at_most_twelve_minutes(repository):
    script = (repository / "benchmarks/gpu.sh").read_text()
    limits = re.findall(r"^(?:step|part) \w+ (\d+) ", script, flags=re.MULTILINE)
    assert len(limits) > 10
    assert sum(map(int, limits)) <= 12 * 60
