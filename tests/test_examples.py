"""Every file of `examples/` is short, says what it shows, and runs as its head says."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from testing_utils import make_rows


EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
WEIGHTS = EXAMPLES.parent / "model_cards/c2fmae-vit-tiny-stl10"
FILES = sorted(EXAMPLES.glob("*.py"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A labelled dataset, photographs by class, and a photograph."""
    folder = tmp_path_factory.mktemp("user")
    rows = make_rows(16, size=72)
    datasets.DatasetDict({"train": rows, "validation": rows.select(range(4))}).save_to_disk(folder / "dataset")
    generator = np.random.default_rng(0)
    for index in range(10):
        path = folder / "photos" / ("dark" if index % 2 else "bright") / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = generator.normal(70 if index % 2 else 180, 30, (60, 60, 3)).clip(0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    return folder


@pytest.fixture
def run(processes, folder) -> Callable[..., str]:
    """Run an example in the folder; returns what it prints."""

    def run(name: str, *args: object) -> str:
        done = processes.run(EXAMPLES / f"{name}.py", *args, cwd=folder)
        assert done.code == 0, done.err[-3000:]
        return done.out

    return run


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_examples_are_short_and_say_what_they_show(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 60
    assert lines[0] == '"""'
    head = "\n".join(lines[: lines.index('"""', 1)])
    assert f"    python examples/{path.name} " in head
    assert re.search(r"(second|minute)s?\b", head)
    assert f"[{path.name}]({path.name})" in (EXAMPLES / "README.md").read_text(encoding="utf-8")


def test_every_example_is_run_here():
    text = Path(__file__).read_text(encoding="utf-8")
    assert all(f'run("{path.stem}"' in text for path in FILES)


def test_pretraining_in_python(run, folder):
    out = run("pretrain_in_python", "dataset", "python")
    assert "eval_semantic_loss" in out
    assert (folder / "python/encoder/model.safetensors").is_file()
    assert (folder / "python/checkpoint-20").is_dir()


def test_fine_tuning_with_the_librarys_trainer(run, folder):
    out = run("finetune_with_trainer", WEIGHTS, "photos", "finetuned")
    assert float(re.search(r"'eval_accuracy': '?([\d.]+)", out)[1]) == 1.0
    assert (folder / "finetuned/config.json").is_file()


def test_timm(run):
    out = run("timm_features", WEIGHTS, "photos/bright/0.png")
    assert "tokens (1, 65, 192)" in out
    assert out.count("map (1, 192, 8, 8)") == 3


def test_upernet(run):
    assert "scores (2, 5, 96, 96)" in run("upernet", WEIGHTS)


def test_custom_masking(run):
    out = run("custom_masking", "dataset")
    rows = re.findall(r"\[([01, ]+)\]", out)
    mask = torch.tensor([[int(value) for value in row.split(",")] for row in rows])
    assert mask.shape == (12, 12)
    assert mask.sum() == 108
    assert (mask[3:9, 3:9] == 1).all()


def test_custom_labeller(run, folder):
    assert "10" in run("custom_labeller", "photos", "bright")
    assert len(datasets.load_dataset(str(folder / "bright"), split="train")) == 10


def test_publishing(run):
    out = run("publish", WEIGHTS, "me/example", "preview")
    assert {"README.md", "LICENSE", "config.json", "model.safetensors"} <= set(out.split())
