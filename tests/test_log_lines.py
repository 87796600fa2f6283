"""The output of a training run, and the k-NN probe during pre-training."""

from __future__ import annotations

import json
import re

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ProgressCallback

from c2fmae_hf import C2FMAEForPreTraining, C2FMAETrainer, C2FMAETrainingArguments
from c2fmae_hf.publishing.records import figures_of, load_run
from c2fmae_hf.training.log_lines import LinePrinterCallback, format_log, readable_time
from c2fmae_hf.transfer.knn_probe import KNNProbeCallback, load_probe_rows
from c2fmae_hf.transfer.probes import weighted_knn
from testing_utils import load_command, make_rows


TRAINING = {
    "loss": 5.01,
    "grad_norm": 1.0,
    "learning_rate": 1e-3,
    "epoch": 0.5,
    "semantic_loss": 1.987,
    "instance_loss": 2.012,
    "image_loss": 0.9871,
    "masked_semantic": 0.6,
    "masked_instance": 0.4,
    "masked_random": 0.0,
    "masked_fallback": 0.0,
}


@pytest.mark.parametrize(
    ("logs", "line"),
    [
        (TRAINING, "step 10/420  semantic 1.99  instance 2.01  image 0.987  masks 60/40/0 %"),
        (
            {**TRAINING, "knn_accuracy": 0.4321, "skipped_rows": 2, "masked_fallback": 0.25},
            "step 10/420  semantic 1.99  instance 2.01  image 0.987  masks 60/40/0 %  knn 43.2 %  skipped_rows 2  "
            "without regions 25 %",
        ),
        (
            {"eval_loss": 3.0, "eval_image_loss": 1.02, "eval_runtime": 2.0, "epoch": 1.0},
            "step 10/420  held out:  image 1.02",
        ),
        ({"loss": 1.4, "learning_rate": 3.5e-4, "grad_norm": 2.0}, "step 10/420  loss 1.40  rate 0.00035"),
        (
            {"eval_loss": 0.5, "eval_top1_accuracy": 0.75, "eval_runtime": 1.0, "eval_steps_per_second": 3.0},
            "step 10/420  held out:  loss 0.500  top1_accuracy 0.750",
        ),
        (
            {"eval_bbox_map": 0.2, "eval_bbox_map_small": 0.1, "eval_segm_map": 0.1, "eval_names": ["a"]},
            "step 10/420  held out:  bbox_map 0.200  segm_map 0.100",
        ),
        ({"train_runtime": 240.0, "train_loss": 1.0}, "trained for 4 min"),
    ],
)
def test_a_line_for_each_record(logs, line):
    assert format_log(logs, 10, 420) == line


def test_times_are_readable():
    assert [readable_time(seconds) for seconds in (0.4, 89, 720, 7200)] == ["0 s", "89 s", "12 min", "2.0 h"]


@pytest.mark.parametrize("disable_tqdm", [True, False])
def test_a_run_says_what_it_does_and_prints_lines(tmp_path, capsys, disable_tqdm):
    rows = make_rows(16, size=40)
    datasets.DatasetDict({"train": rows, "validation": rows.select(range(4))}).save_to_disk(tmp_path / "rows")
    words = [
        *(str(tmp_path / "rows"), "--size", "tiny", "--image_size", "32", "--max_steps", "6", "--logging_steps", "3"),
        *("--config_overrides", '{"num_hidden_layers": 1, "patch_size": 8}', "--num_drawn", "0", "--use_cpu"),
        *("--output_dir", str(tmp_path / "run"), "--disable_tqdm", str(disable_tqdm), "--eval_strategy", "epoch"),
        *("--per_device_train_batch_size", "8"),
    ]
    trainer = load_command("pretrain").main(words)
    printed = capsys.readouterr().out
    assert re.search(
        r"Pre-training on 16 rows of \S+rows, 4 held out, 5 classes\. c2fmae-vit-tiny: patches of 8 at 32 x 32 "
        r"pixels, 0\.5 M parameters in the encoder and \d\.\d M in the decoder\. 6 steps of 8 images on cpu, "
        r"learning rate 0\.0015\.",
        printed,
    )
    assert re.search(r"\d s a step: about \d s to go", printed)
    assert re.search(r"step 3/6  semantic \d\.\d+  instance \d\.\d+  image \d\.\d+  masks \d+/\d+/\d+ %\n", printed)
    assert re.search(r"step 2/6  held out:  semantic \d", printed)
    assert "{'" not in printed
    kinds = {type(callback) for callback in trainer.callback_handler.callbacks}
    assert ProgressCallback not in kinds
    assert (LinePrinterCallback in kinds) is disable_tqdm


@pytest.fixture
def labelled(tmp_path) -> str:
    """Photographs whose class is their hue, in a folder for each class."""
    generator = np.random.default_rng(0)
    for index in range(40):
        colour = np.eye(3)[index % 3] * 150 + 50
        pixels = np.clip(generator.normal(colour, 10, (40, 40, 3)), 0, 255).astype(np.uint8)
        folder = tmp_path / "labelled" / "rgb"[index % 3]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return str(tmp_path / "labelled")


def train(config, folder, labelled: str | None, **arguments):
    args = C2FMAETrainingArguments(
        str(folder),
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        per_device_train_batch_size=4,
        **{"max_steps": 5, "logging_steps": 2, "save_strategy": "no", **arguments},
    )
    config.decoder_prediction_ratio = 0.5  # by chance, which a probe must leave alone
    torch.manual_seed(0)
    trainer = C2FMAETrainer(C2FMAEForPreTraining(config), args, train_dataset=make_rows(12))
    if labelled is not None:
        trainer.add_callback(KNNProbeCallback(trainer, *load_probe_rows(labelled), steps=3))
    trainer.train()
    return trainer


def test_a_probe_is_logged_and_leaves_training_alone(config, labelled, tmp_path):
    plain = train(config, tmp_path / "plain", None)
    probed = train(config, tmp_path / "probed", labelled)
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, probed.model.state_dict()[name]), name
    assert probed.model.training
    found = [(entry["step"], entry["knn_accuracy"]) for entry in probed.state.log_history if "knn_accuracy" in entry]
    assert [step for step, _ in found] == [0, 3, 5]
    assert all(0.5 < accuracy <= 1 for _, accuracy in found)  # by colour alone
    with_loss = [entry for entry in probed.state.log_history if "knn_accuracy" in entry and "loss" in entry]
    assert [entry["step"] for entry in with_loss] == [3, 5]


def test_a_probe_is_of_the_weights_as_they_are(config, labelled, tmp_path):
    """Computed again from the encoder by hand; another encoder has another accuracy."""
    trainer = train(config, tmp_path, labelled)
    (callback,) = [one for one in trainer.callback_handler.callbacks if isinstance(one, KNNProbeCallback)]
    encoder = trainer.model.image_encoder().eval()
    features, labels = [], []
    for part in callback.parts:
        pixels = torch.stack([part[index]["pixel_values"] for index in range(len(part))])
        with torch.no_grad():
            features.append(encoder(pixels).pooler_output)
        labels.append(torch.tensor(part.rows["label"]))
    assert [len(part) for part in callback.parts] == [32, 8]
    scores = weighted_knn(features[0], labels[0], features[1], 3, k=6)
    expected = (scores.argmax(dim=1) == labels[1]).float().mean().item()
    assert callback.probe() == pytest.approx(expected)
    with torch.no_grad():
        trainer.model.c2fmae.patch_embed.proj.weight.zero_()
        trainer.model.c2fmae.patch_embed.proj.bias.zero_()
    assert callback.probe() < expected  # every image looks the same


def test_the_command_probes_and_records(config, labelled, tmp_path, capsys):
    rows = make_rows(12)
    datasets.DatasetDict({"train": rows, "validation": rows.select(range(4))}).save_to_disk(tmp_path / "rows")
    C2FMAEForPreTraining(config).save_pretrained(tmp_path / "start")
    load_command("pretrain").main(
        [
            *(str(tmp_path / "rows"), "--model_name_or_path", str(tmp_path / "start"), "--max_steps", "4"),
            *("--probe_dataset", labelled, "--probe_steps", "2", "--output_dir", str(tmp_path / "run")),
            *("--use_cpu", "--disable_tqdm", "true", "--num_drawn", "2"),
        ]
    )
    assert re.search(r"step 2/4  .*  knn \d+\.\d %", capsys.readouterr().out)
    assert (tmp_path / "run/curves.png").is_file()
    figures = [one for one in figures_of(load_run(tmp_path / "run", "training")) if one.metric == "knn_accuracy"]
    history = json.loads((tmp_path / "run/trainer_state.json").read_text())["log_history"]
    values = [entry["knn_accuracy"] for entry in history if "knn_accuracy" in entry]
    assert [(one.value, one.is_last) for one in figures] == [(values[0], False), (values[-1], True)]


def test_mistakes_are_named_at_the_start(config, labelled, tmp_path, capsys):
    args = C2FMAETrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    trainer = C2FMAETrainer(C2FMAEForPreTraining(config), args, train_dataset=make_rows(4))
    with pytest.raises(ValueError, match="probe_steps: expected at least 1, got 0"):
        KNNProbeCallback(trainer, *load_probe_rows(labelled), steps=0)
    rows = make_rows(8)
    cases = {
        r"expected the columns 'image' and 'label', got": rows,
        r"column 'label': expected a class in every row, got -1 in 1 of": rows.add_column(
            "label", [0, 1] * 3 + [1, -1]
        ),
        r"column 'label': expected class names or integers, got": rows.add_column("label", list("abababab")),
        r"expected images of at least two classes, got one": rows.add_column("label", [0] * 8),
    }
    for index, (message, labels) in enumerate(cases.items()):
        labels.save_to_disk(tmp_path / f"rows{index}")
        with pytest.raises(ValueError, match=rf"probe_dataset \S+rows{index}: .*{message}"):
            load_probe_rows(str(tmp_path / f"rows{index}"))


def test_a_missing_probe_stops_before_anything_is_labelled(tmp_path, capsys):
    for index, row in enumerate(make_rows(4)):
        (tmp_path / "photos").mkdir(exist_ok=True)
        row["image"].save(tmp_path / "photos" / f"{index}.png")
    words = [str(tmp_path / "photos"), "--output_dir", str(tmp_path / "run"), "--use_cpu"]
    with pytest.raises(FileNotFoundError, match=r"expected Parquet files at 'nowhere.parquet'"):
        load_command("pretrain").main([*words, "--probe_dataset", "nowhere.parquet"])
    with pytest.raises(SystemExit):
        load_command("pretrain").main([*words, "--probe_dataset", "photos", "--probe_steps", "0"])
    assert "probe_steps: expected at least 1, got 0" in capsys.readouterr().err
    assert not (tmp_path / "run/dataset").exists()
