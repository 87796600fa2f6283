"""`--estimate`: what it counts, and that it leaves nothing behind."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file

from c2fmae_hf import C2FMAEForPreTraining
from c2fmae_hf.commands import estimate, estimate_labelling, estimate_training
from c2fmae_hf.data.data_collator import DataCollatorForC2FMAE
from c2fmae_hf.labelling.labellers.classical import ClassicalLabeller
from testing_utils import RECIPES, load_command, make_rows, png


FEWEST_STEPS = estimate.WARM_UP + estimate.FEWEST


@pytest.fixture(scope="module")
def pretrain():
    return load_command("pretrain")


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    """The fewest steps and images."""
    monkeypatch.setattr(estimate, "SECONDS", 0.0)


@pytest.fixture
def recipe(tmp_path) -> Path:
    rows = make_rows(16, size=72)
    datasets.DatasetDict({"train": rows, "validation": rows.select(range(4))}).save_to_disk(tmp_path / "rows")
    values = {
        "dataset_name": str(tmp_path / "rows"),
        "output_dir": str(tmp_path / "run"),
        "size": "tiny",
        "image_size": 32,
        "config_overrides": {"num_hidden_layers": 1, "decoder_num_hidden_layers": 1},
        "num_train_epochs": 5,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "eval_strategy": "epoch",
        "save_strategy": "steps",
        "save_steps": 3,
        "save_total_limit": 2,
        "num_drawn": 0,
        "use_cpu": True,
        "disable_tqdm": True,
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture
def photos(tmp_path) -> Path:
    (tmp_path / "photos").mkdir()
    for index, row in enumerate(make_rows(40, size=72)):
        row["image"].save(tmp_path / "photos" / f"{index:02d}.png")
    return tmp_path / "photos"


def contents(folder: Path) -> dict[str, str]:
    """Checksums of all files below a folder, and its folders."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in folder.rglob("*")
    }


class Clock:
    """Time that passes only where a test says so: 50 s in the first forward pass, 1 s in each later one, and so on."""

    def __init__(self, monkeypatch) -> None:
        self.now, self.passes = 0.0, 0
        clock = SimpleNamespace(perf_counter=lambda: self.now)
        monkeypatch.setattr(estimate_training, "time", clock)
        monkeypatch.setattr(estimate_labelling, "time", clock)
        self.slow(monkeypatch, C2FMAEForPreTraining, "forward", lambda: 50 if self.passes == 1 else 1)
        self.slow(monkeypatch, DataCollatorForC2FMAE, "__call__", lambda: 0.25)
        self.slow(monkeypatch, ClassicalLabeller, "label", lambda: 2)

    def slow(self, monkeypatch, kind: type, name: str, seconds) -> None:
        inner = getattr(kind, name)

        def method(*args, **kwargs):
            self.passes += name == "forward"
            self.now += seconds()
            return inner(*args, **kwargs)

        monkeypatch.setattr(kind, name, method)


def test_what_is_counted(pretrain, recipe, tmp_path, monkeypatch, capsys):
    Clock(monkeypatch)
    before = contents(tmp_path)
    result = pretrain.main([str(recipe), "--estimate", "--estimate_devices", "4"])
    assert contents(tmp_path) == before
    assert (result.steps, result.epochs, result.images_per_step) == (10, 5, 8)
    assert result.num_measured == estimate.FEWEST
    # Per step two passes of 1 s, and two batches of 0.25 s; the first pass is warm-up.
    assert (result.computing, result.waiting, result.loading) == (2, 0.5, 0.5)
    assert result.warming_up == 49
    assert (result.step_seconds, result.waiting_share) == (2.5, pytest.approx(0.2))
    # Five evaluations and one at the end, of one batch of four.
    assert (result.evaluations, result.evaluation_seconds) == (6, 1.25)
    # Steps 3, 6, 9 and 10; two are kept.
    assert (result.checkpoints, result.checkpoint_seconds) == (4, 0)
    assert result.storage()["2 checkpoints"] == 2 * result.checkpoint_bytes > 3 * 2 * result.model_bytes
    # The decoder is scored on a batch of four.
    assert result.decoder_seconds == 1.25
    assert result.seconds() == 10 * 2.5 + 49 + 6 * 1.25 + 1.25
    # On four devices a step an epoch, of all rows, that never waits, and evaluations in a quarter of the time.
    assert result.seconds(4) == 5 * 2 + 49 + 6 * 1.25 / 4 + 1.25
    printed = capsys.readouterr().out
    for line in (
        "Pre-training on 16 rows of",
        f"Estimate from {estimate.FEWEST} steps, which were not kept:",
        "  run: 10 steps of 8 images (4 x 2 accumulated), 5 passes over the rows, learning rate 0.00011, on cpu\n",
        "  model: 4 images/s while it does not wait for data\n",
        "  loading alone: 16 images/s in the training process, which has no workers\n",
        "  together: 3.2 images/s; the model waits for data 20% of the time",
        "  memory: ",
        "  time: 83 s: training 25 s, warm-up 49 s, 6 evaluations 8 s, scores of the decoder 1 s\n",
        "  4 devices like this one: 62 s for 5 steps of 16 images, learning rate 0.00021, if gradients are exchanged "
        "in no time and loading keeps up, which needs 1 worker per device at this speed\n",
        f" in {tmp_path / 'run'}: 2 checkpoints ",
    ):
        assert line in printed
    result.args.dataloader_num_workers = 2
    assert "loading alone: 16 images/s with 2 workers, 8 images/s each" in result.lines()


def test_the_number_of_workers_that_would_keep_up(pretrain, recipe, monkeypatch, capsys):
    clock = Clock(monkeypatch)
    # 2.25 s a batch in all, for 1 s of the model
    clock.slow(monkeypatch, DataCollatorForC2FMAE, "__call__", lambda: 2)
    monkeypatch.setattr(estimate_training, "num_cores", lambda: 8)
    assert pretrain.main([str(recipe), "--estimate"]).workers == 3
    assert "69% of the time; --dataloader_num_workers 3 would keep up" in capsys.readouterr().out
    monkeypatch.setattr(estimate_training, "num_cores", lambda: 3)
    assert pretrain.main([str(recipe), "--estimate"]).workers is None
    assert "69% of the time; more workers need more cores" in capsys.readouterr().out


def test_an_estimate_changes_no_run(pretrain, recipe, tmp_path):
    """Neither a finished one, whose folder stays as it is, nor the next one in the same process."""
    words = [str(recipe), "--max_steps", "2", "--eval_strategy", "no"]
    pretrain.main(words)
    before = contents(tmp_path)
    pretrain.main([*words, "--estimate"])
    pretrain.main([*words, "--estimate", "--resume_from_checkpoint", "last"])
    assert contents(tmp_path) == before
    shutil.move(tmp_path / "run", tmp_path / "earlier")
    pretrain.main(words)
    weights, others = (load_file(tmp_path / name / "c2fmae-vit-tiny/model.safetensors") for name in ("run", "earlier"))
    assert all((weights[name] == others[name]).all() for name in others)


@pytest.mark.parametrize(("number", "kind"), [("SIGINT", KeyboardInterrupt), ("SIGTERM", SystemExit)])
def test_a_signal_ends_it_at_once_and_leaves_nothing(pretrain, recipe, tmp_path, monkeypatch, request, number, kind):
    number, clock = getattr(signal, number), Clock(monkeypatch)
    if number == signal.SIGINT:  # which tests in a shell's background would ignore
        given = signal.signal(number, signal.default_int_handler)
        request.addfinalizer(lambda: signal.signal(number, given))
    clock.slow(monkeypatch, DataCollatorForC2FMAE, "__call__", lambda: os.kill(os.getpid(), number) or 0)
    before, handler = contents(tmp_path), signal.getsignal(number)
    with pytest.raises(kind):
        pretrain.main([str(recipe), "--estimate"])
    assert clock.passes == 0
    assert contents(tmp_path) == before
    assert signal.getsignal(number) == handler
    assert datasets.is_caching_enabled()


def test_streams_probes_workers_and_few_steps(pretrain, recipe, tmp_path, capsys):
    for index in range(8):
        folder = tmp_path / "classes" / f"class {index % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((40, 40, 3), 25 * index, np.uint8)).save(folder / f"{index}.png")
    words = [str(recipe), "--estimate", "--max_steps", "3", "--gradient_accumulation_steps", "1"]
    words += ["--probe_dataset", str(tmp_path / "classes"), "--probe_steps", "2", "--dataloader_num_workers", "1"]
    before = contents(tmp_path)
    result = pretrain.main([*words, "--streaming", "--num_semantic_classes", "5", "--shuffle_rows", "8"])
    assert contents(tmp_path) == before
    assert (result.steps, result.num_measured, result.probes) == (3, FEWEST_STEPS - estimate.WARM_UP, 3)
    assert result.steps_on(8) == 3  # as `max_steps` says, on any number of devices
    assert result.probe_seconds > 0
    assert result.evaluation_seconds is None
    printed = capsys.readouterr().out
    assert "run: 3 steps of 4 images, learning rate" in printed
    assert "with 1 worker\n" in printed
    assert "evaluations: not counted, since the stream's length is unknown; see --max_eval_samples" in printed
    result = pretrain.main([*words, "--streaming", "--num_semantic_classes", "5", "--max_eval_samples", "3"])
    assert result.evaluation_seconds > 0


def test_neither_a_repository_nor_caches_are_written(pretrain, recipe, tmp_path):
    """There is no network here; `datasets` would cache which rows are held out beside the others."""
    before = contents(tmp_path)
    words = [str(recipe), "--validation_split", "train", "--validation_share", "0.25"]
    result = pretrain.main([*words, "--estimate", "--push_to_hub", "--hub_model_id", "me/mine"])
    assert contents(tmp_path) == before
    assert result.images_per_step == 6


# Photographs


def test_photographs_are_labelled_in_part(pretrain, photos, tmp_path, monkeypatch, capsys):
    Clock(monkeypatch)
    monkeypatch.setattr(estimate_labelling, "IMAGES_TO_FIT", 8)
    words = ["--image_size", "32", "--use_cpu", "--disable_tqdm", "true", "--dataloader_num_workers", "0"]
    before = contents(tmp_path)
    result = pretrain.main([str(photos), "--output_dir", str(tmp_path / "run"), *words, "--estimate"])
    assert contents(tmp_path) == before
    labelling = result.labelling
    assert (labelling.images, labelling.rejects) == (40, 0)
    assert 4 <= labelling.measured < 16  # four, and what threads decode ahead
    assert (labelling.labelling, labelling.together, labelling.fitting) == (2, 2, 0)
    assert result.parts()["labelling"] == labelling.seconds == 40 * 2
    assert labelling.bytes == pytest.approx(40 * (labelling.image_bytes + labelling.map_bytes))
    assert result.storage()["dataset"] == labelling.bytes
    assert (result.steps, result.images_per_step, result.epochs) == (400, pytest.approx(38 / 3), 400 / 3)
    printed = capsys.readouterr().out
    assert f"Pre-training on 38 rows of {photos}, 2 held out, 20 classes." in printed
    assert "labelling: 0.5 images/s" in printed
    assert "time: " in printed
    words += ["--streaming", "--max_steps", "3", "--num_semantic_classes", "20", "--num_drawn", "0", "--size", "tiny"]
    assert pretrain.main([str(photos), "--output_dir", str(tmp_path / "run"), *words, "--estimate"]).epochs == 0


def test_labelling_is_estimated(photos, tmp_path, monkeypatch, capsys):
    Clock(monkeypatch)
    label = load_command("label")
    before = contents(tmp_path)
    result = label.main([str(photos), str(tmp_path / "labels"), "--estimate", "--num_workers", "2"])
    assert contents(tmp_path) == before
    assert label.exit_code(result) == 0
    assert result.measured < 16
    # Two workers in 40 images of 2 s; eight workers.
    assert (result.seconds, result.seconds_with(8)) == (40, 10)
    printed = capsys.readouterr().out
    for line in (
        f"Estimate from {result.measured} images of {photos}, which were not kept:",
        "  labeller: 0.5 images/s in batches of 1\n",
        "  together: 0.5 images/s; the labeller waits 0% of the time\n",
        "  time: 40 s for 40 images with 2 workers as fast as this one, 0 s of it to begin\n",
        "  8 workers, each with a core like this one: 10 s\n",
        f"  dataset: {estimate.readable_bytes(result.bytes)}: ",
        f"; 0 of {result.measured} images rejected\n",
        "in this process at most and each worker\n",
        f"in {tmp_path / 'labels'}: dataset ",
    ):
        assert line in printed
    label.main([str(photos), "--estimate"])  # without an output folder
    with pytest.raises(SystemExit):
        label.main([str(photos)])
    assert "expected OUTPUT_DIR or --output_dir" in capsys.readouterr().err


def test_a_labeller_is_fitted_to_as_many_images_as_in_the_job(photos, tmp_path, monkeypatch):
    clock = Clock(monkeypatch)
    clock.slow(monkeypatch, ClassicalLabeller, "_segment", lambda: 1)
    monkeypatch.setattr(estimate_labelling, "IMAGES_TO_FIT", 33)
    # 33 images of 1 s, and 7 more; each is then segmented again and labelled.
    assert load_command("label").main([str(photos), "--estimate"]).fitting == 40


def test_photographs_that_cannot_be_labelled(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "labels").mkdir()
    for index in range(3):
        (tmp_path / "photos" / f"{index}.jpg").write_bytes(b"no image")
    words = ["--estimate", "--labeller", "annotations", "--layout", "folders"]
    shutil.move(tmp_path / "photos", tmp_path / "images")
    shutil.copytree(tmp_path / "images", tmp_path / "semantic")
    (tmp_path / "classes.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match="none of the 3 tried can be labelled"):
        load_command("label").main([str(tmp_path), *words])


def test_sizes_and_a_disk_that_is_too_small(tmp_path, monkeypatch):
    assert [estimate.readable_bytes(number) for number in (1700, 34e6, 1.34e9, 32e12)] == [
        *("1.7 kB", "34 MB", "1.3 GB", "32.0 TB")
    ]
    line = estimate.storage_in_words({"dataset": 3e18}, tmp_path / "a" / "b")
    assert re.fullmatch(r"storage: 3000000.0 TB in \S+: dataset 3000000.0 TB; the disk has only .+ free", line)
    with pytest.raises(ValueError, match="estimate_devices: expected at least 1, got 0"):
        estimate.EstimateArguments(estimate_devices=0)


# The recipes for ImageNet


@pytest.fixture(scope="module")
def like_imagenet(tmp_path_factory) -> Path:
    """Thirty rows of noise with the sizes of ImageNet's and 133 classes."""
    generator = np.random.default_rng(0)
    names = [f"class {index}" for index in range(133)]
    rows = []
    for index in range(30):
        semantic = np.repeat(np.repeat(generator.integers(0, 133, (6, 8), dtype=np.uint8), 32, 0), 32, 1)[:188, :250]
        rows.append(
            {
                "image": png(generator.integers(0, 256, (375, 500, 3), dtype=np.uint8)),
                "semantic": png(semantic),
                "instance": png(np.where(semantic < 80, semantic + 1, 0).astype(np.uint8)),
                "semantic_classes": np.unique(semantic).tolist(),
                "image_id": str(index),
            }
        )
    features = datasets.Features(
        {
            **{name: datasets.Image() for name in ("image", "semantic", "instance")},
            "semantic_classes": datasets.List(datasets.ClassLabel(names=names)),
            "image_id": datasets.Value("string"),
        }
    )
    folder = tmp_path_factory.mktemp("imagenet") / "rows"
    datasets.Dataset.from_list(rows, features=features).save_to_disk(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--streaming", "--max_steps", "1000", "--shuffle_rows", "16"]])
@pytest.mark.parametrize("name", [path.stem for path in sorted((RECIPES / "pretrain").glob("imagenet*.yaml"))])
def test_recipes_for_imagenet(pretrain, like_imagenet, tmp_path, name, options, capsys):
    """Model and rows as in the recipe, in batches for a CPU."""
    words = [
        "--recipe",
        name,
        "--dataset_name",
        str(like_imagenet),
        "--output_dir",
        str(tmp_path / "run"),
        "--estimate",
    ]
    small = ["--per_device_train_batch_size", "2", "--per_device_eval_batch_size", "2", "--use_cpu"]
    small += ["--dataloader_num_workers", "1"]
    result = pretrain.main([*words, "--estimate", *small, *options])
    values = yaml.safe_load((RECIPES / f"pretrain/{name}.yaml").read_text())
    accumulated = values["gradient_accumulation_steps"]
    # Two of the thirty rows are held out, and incomplete batches are dropped.
    assert result.steps == (1000 if options else values["num_train_epochs"] * 14 / accumulated)
    assert list(tmp_path.iterdir()) == []
    printed = capsys.readouterr().out
    assert f"c2fmae-vit-{values['size']}: patches of 16 at 224 x 224 pixels" in printed
    assert "133 classes" in printed
    assert f"(2 x {accumulated} accumulated)" in printed


@pytest.mark.slow
@pytest.mark.parametrize("source", ["rows", "stream", "photographs"])
def test_of_two_processes_one_prints(recipe, photos, tmp_path, source):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    command += ["c2fmae_hf", "pretrain", str(recipe), "--estimate", "--ddp_backend", "gloo"]
    command += ["--dataloader_num_workers", "1"]
    command += {
        "rows": [],
        "stream": ["--streaming", "--max_steps", "10", "--num_semantic_classes", "5"],
        "photographs": ["--dataset_name", str(photos)],
    }[source]
    before = contents(tmp_path)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("which were not kept:") == 1
    assert "steps of 16 images (4 x 2 accumulated x 2 processes)" in done.stdout
    assert contents(tmp_path) == before
