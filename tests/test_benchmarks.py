"""Benchmarks run and measure something, and the documents hold what their records say."""

from __future__ import annotations

import io
import json
import math
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image


@pytest.fixture
def benchmarks(repository, monkeypatch):
    """The folder, with its modules importable."""
    folder = repository / "benchmarks"
    for path in (folder, folder / "representation"):
        monkeypatch.syspath_prepend(str(path))
    yield folder
    for path in (*folder.glob("*.py"), *folder.glob("representation/*.py")):
        sys.modules.pop(path.stem, None)


def test_documents_hold_the_figures_of_the_records(benchmarks, capsys):
    import tables

    assert tables.main(["--check"]) == 0, capsys.readouterr().err


def test_every_record_is_used_and_has_machine_date_and_command(benchmarks, repository):
    pages = "".join(path.read_text(encoding="utf-8") for path in repository.glob("docs/*.md"))
    for name in ("README.md", "representation/README.md"):
        pages += (benchmarks / name).read_text(encoding="utf-8")
    for path in (benchmarks / "results").glob("*.json"):
        assert f"results/{path.name}" in pages, path.name
        content = json.loads(path.read_text(encoding="utf-8"))
        if "rows" in content:
            assert {"date", "torch"} <= content["machine"].keys(), path.name
            assert "command" in content or path.stem == "time_to_quality", path.name


def test_another_figure_in_a_record_is_noticed(benchmarks, tmp_path, monkeypatch, capsys):
    import tables

    shutil.copytree(tables.RESULTS, tmp_path / "results")
    monkeypatch.setattr(tables, "RESULTS", tmp_path / "results")
    for name, pages in (("step-float32", ["README.md", "benchmarks/README.md", "docs/pretraining.md"]),):
        path = tmp_path / f"results/{name}.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        for row in content["rows"]:
            row["times ViTMAE"] *= 2
        path.write_text(json.dumps(content), encoding="utf-8")
        for page in pages:
            text = (tables.ROOT / page).read_text(encoding="utf-8")
            assert tables.render(page, text) != text, page


def test_a_figure_that_left_its_page_is_an_error(benchmarks):
    import tables

    text = (tables.ROOT / "README.md").read_text(encoding="utf-8")
    with pytest.raises(ValueError, match=r"README.md: expected the figure .* once, found it 0 times"):
        tables.render("README.md", text.replace("times as many images", "times the images"))


@pytest.mark.parametrize(
    ("score", "expected"), [(0.3, ("<", 2.0)), (0.5, ("=", 4.0)), (0.6, ("=", 8.0)), (0.7, (">", 8.0))]
)
def test_time_to_quality_is_interpolated_over_the_logarithm_of_compute(benchmarks, score, expected):
    import time_to_quality

    sign, epochs = time_to_quality.reached_at({2.0: [0.3, 0.5], 8.0: [0.6]}, score)
    assert (sign, epochs) == (expected[0], pytest.approx(expected[1]))


TINY = ("--rounds", "1")
SCRIPTS = {
    "pretraining_step": ("--size", "tiny", "--batch_size", "2", "--image_size", "32", "--matrix_size", "64", *TINY),
    "encoder_inference": ("--size", "tiny", "--batch_sizes", "1", *TINY),
    "data_pipeline": ("--dataset_name", "{rows}", "--rows", "4", "--batch_size", "2", "--image_size", "32", *TINY),
    "trainer_throughput": ("--dataset_name", "{rows}", "--batch_size", "2", "--steps", "6", "--workers", "0", *TINY),
    "growth": (
        "--batch_sizes",
        "1",
        "--image_sizes",
        "32",
        "--classes",
        "3",
        "--depths",
        "1",
        "--widths",
        "64",
        *TINY,
    ),
    "memory": (
        "--steps",
        "40",
    ),
    "labelling": ("--source", "{rows}", "--images", "64", "--engines", "1 process", *TINY),
    "start_up": ("--size", "tiny", *TINY),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(SCRIPTS))
def test_a_benchmark_measures_something(name, benchmarks, rows, tmp_path):
    output, data = tmp_path / "found.json", tmp_path / "rows.parquet"
    rows.to_parquet(data)
    words = [word.format(rows=data) for word in SCRIPTS[name]]
    command = [sys.executable, str(benchmarks / f"{name}.py"), *words, "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads(output.read_text(encoding="utf-8"))["rows"]
    numbers = [value for row in rows for value in row.values() if isinstance(value, float)]
    assert numbers
    assert all(math.isfinite(number) and number >= 0 for number in numbers)
    assert sum(number > 0 for number in numbers) > len(numbers) / 2


@pytest.mark.slow
def test_what_defaults_reach_is_measured_by_the_commands(benchmarks, tmp_path):
    import defaults

    data, output = tmp_path / "data", tmp_path / "found.json"
    data.mkdir()
    for split in ("train", "val"):
        photographs = []
        for label in range(5):  # one more than the commands are shown
            file = io.BytesIO()
            Image.fromarray(np.full((96, 96, 3), 50 * label, dtype=np.uint8)).save(file, "PNG")
            photographs.append({"bytes": file.getvalue(), "path": None})
        columns = {"image": 60 * photographs, "label": 60 * list(range(5))}
        pq.write_table(pa.table(columns), data / f"stl10_seg_{split}.parquet")
    command = ["--data", data, "--work", tmp_path / "work", "--output", output, "--runs", "knn-many", "knn-sixty-0"]
    defaults.main([str(word) for word in command])
    found = json.loads(output.read_text(encoding="utf-8"))
    assert set(found["runs"]) == {"knn-many-0", "knn-sixty-0"}
    assert found["runs"]["knn-many-0"]["rows"] == {"train": 48, "validation": 200}
    assert found["runs"]["knn-sixty-0"]["rows"] == {"train": 48, "validation": 12}
    assert found["runs"]["knn-sixty-0"]["results"]["mean"]["top1_accuracy"] == 1  # plain colours
    with pytest.raises(SystemExit):
        defaults.main([*map(str, command[:2]), "--runs", "other"])


def test_of_a_pretraining_run_the_last_held_out_losses_count(benchmarks, tmp_path):
    import defaults

    last = {"semantic": 1.5, "instance": 1.25, "image": 0.75}
    losses = [{f"eval_{name}_loss": step * value for name, value in last.items()} for step in (2, 1)]
    log = [{"knn_accuracy": 0.25}, losses[0], {"knn_accuracy": 0.5}, losses[1], {"train_runtime": 12.4}]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": log}), encoding="utf-8")
    (tmp_path / "run.json").write_text(json.dumps({"rows": {"train": 3}}), encoding="utf-8")
    found = defaults.result_of(tmp_path)
    assert found == {"results": last, "knn": [0.25, 0.5], "rows": {"train": 3}, "seconds": 12}
