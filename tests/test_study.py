"""The study's command on a few steps: what it measures is no evidence, that it runs and resumes is."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_the_study_runs_and_goes_on(repository, shared_data, tmp_path):
    scripts = repository / "benchmarks/representation"
    results = tmp_path / "results"
    results.mkdir()
    (results / "calibration.json").write_text(json.dumps({"times_mae": {"mae": 1.0, "curriculum": 1.25}}))
    command = [sys.executable, scripts / "study.py", "--data", shared_data, "--variants", "mae", "curriculum"]
    command += ["--epochs", "0.05", "--num_workers", "0", "--output", results, "--work", tmp_path / "work"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    for _ in range(2):
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, timeout=600)
        assert done.returncode == 0, done.stderr[-3000:]
        written = {path.name: path.stat().st_mtime_ns for path in results.glob("*-0-stl10-small-0.05.json")}
        assert set(written) == {"mae-0-stl10-small-0.05.json", "curriculum-0-stl10-small-0.05.json"}
    runs = {
        name: json.loads((results / f"{name}-0-stl10-small-0.05.json").read_text()) for name in ("mae", "curriculum")
    }
    assert runs["mae"]["steps"] == 10
    assert runs["curriculum"]["steps"] == 8  # for the same compute
    for run in runs.values():
        assert all(0 <= value <= 1 for value in run["results"].values())
        assert run["results"]["linear_probe"] > 0.1
    # The protocols give a saved encoder the scores of its run.
    command = [sys.executable, scripts / "judge.py", "--data", shared_data, "--output", results]
    command += [tmp_path / "work/curriculum-0-stl10-small-0.05/encoder"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    judged = json.loads((results / "encoder-encoder.json").read_text())["results"]
    assert judged == pytest.approx(runs["curriculum"]["results"], abs=1e-3)
    command = [sys.executable, str(scripts / "summarise.py"), "--results", str(results)]
    table = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "cascade, curriculum from coarse to fine | 1 |" in table
    assert (results / "study-stl10-small-0.05.png").stat().st_size > 1000
    assert (results / "compute.png").stat().st_size > 1000


@pytest.mark.slow
def test_the_fleet_runs_and_adds_to_its_results(repository, shared_data, tmp_path):
    scripts = repository / "benchmarks/representation"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    for variants in (["mae"], ["mae", "objects"]):
        command = [sys.executable, scripts / "fleet.py", "--data", shared_data, "--variants", *variants]
        command += ["--epochs", "0.02", "--num_evaluators", "1", "--output", tmp_path, "--work", tmp_path / "work"]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, timeout=900)
        assert done.returncode == 0, done.stderr[-3000:]
    groups = json.loads((tmp_path / "fleet-stl10-small-0.02.json").read_text())
    assert [[run["variant"] for run in group["runs"]] for group in groups] == [["mae"], ["objects"]]
    for group in groups:
        (run,) = group["runs"]
        assert run["steps"] == 4
        assert run["results"]["linear_probe"] > 0.1
        assert group["photographs"] == {"train": 3735, "test": 4525, "other_test": 651}
