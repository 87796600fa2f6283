"""The study's command on a few steps: what it measures is no evidence, that it runs and resumes is."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch


@pytest.fixture
def scripts(repository, monkeypatch):
    monkeypatch.syspath_prepend(str(repository / "benchmarks/representation"))
    yield
    for name in ("answers", "data", "pretrain", "summarise", "variants"):
        sys.modules.pop(name, None)


def test_intervals_over_photographs_are_wider(scripts):
    from answers import pack_answers, unpack_answers
    from summarise import CLASSED, compare, compare_photographs, summarise, table_by_class

    random = np.random.default_rng(0)
    runs = []
    for variant, share in (("mae", 0.3), ("cascade", 0.8)):
        for seed in range(3):
            right = random.random(101) < share
            scores = dict.fromkeys(CLASSED, right.mean()) | {f"{metric}_balanced": share for metric in CLASSED}
            packed = pack_answers(right)
            assert (unpack_answers(json.loads(json.dumps(packed))) == right).all()
            others = {"patch_mean_iou": 0.5, "attention_in_object": 0.4 + seed / 10}
            run = {"variant": variant, "seed": seed, "images": 32, "answers": dict.fromkeys(CLASSED, packed)}
            runs.append(run | {"results": scores | others})
    rows = summarise(runs, {})
    words = "cascade with random masks, against MAE"
    narrow, wide = (
        next(line.split(" | ")[1] for line in found.splitlines() if words in line).strip("*").split(" ± ")
        for found in (compare(rows), compare_photographs(runs, rows))
    )
    assert narrow[0] == wide[0]  # the same difference, of more doubt
    assert 3 < float(narrow[1]) < float(wide[1]) < 30
    assert "| 30.0 ± 0.0 | 30.0 ± 0.0 |" in table_by_class(rows)
    del runs[0]["answers"]
    assert compare_photographs(runs, rows) is None


def test_variants_of_the_decoder(scripts):
    from pretrain import build_model
    from variants import VARIANTS

    assert len(build_model(VARIANTS["mae_deep"], 0).decoder.decoder_layers) == 5
    queries, memory = torch.randn(1, 4, 128), torch.randn(1, 3, 128)
    changed = queries.clone()
    changed[:, 0] += 1
    for name, others_see_it in (("cascade", False), ("self_attention", True)):
        model = build_model(VARIANTS[name], 0).eval()
        for granularity, stage in model.decoder.stages.items():
            before, after = (stage(one, memory)[0] for one in (queries, changed))
            same = torch.equal(before[:, 1:], after[:, 1:])
            assert same != (others_see_it and granularity != "image")
            assert not torch.equal(before[:, 0], after[:, 0])


@pytest.mark.slow
def test_the_study_runs_and_goes_on(repository, shared_data, tmp_path):
    scripts = repository / "benchmarks/representation"
    results = tmp_path / "results"
    results.mkdir()
    (results / "calibration-small.json").write_text(json.dumps({"times_mae": {"mae": 1.0, "curriculum": 1.25}}))
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
        assert run["answers"]["knn"]["photographs"] == 4525
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
