"""Output of the commands: a start paragraph, readable lines, results and next steps."""

from __future__ import annotations

import json
import logging
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import AutoModelForImageClassification, ViTModel

from c2fmae_hf.commands.console import type_in
from c2fmae_hf.modeling_c2fmae import C2FMAEBackbone
from c2fmae_hf.transfer.encoders import load_with_new_parts
from hub_clients import command
from test_detection import SMALL as SMALL_DETECTOR
from transfer_utils import save_discs, save_encoders


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model `c2fmae`, a labelled dataset `discs`, and `photos` in two folders of a class each."""
    folder = tmp_path_factory.mktemp("console")
    save_encoders(folder)
    save_discs(folder / "discs", num_train=8, num_validation=4)
    generator = np.random.default_rng(0)
    for index in range(12):
        path = folder / "photos" / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(path)
    return folder


TINY = ("--use_cpu", "--max_steps", "2", "--num_train_epochs", "1")
ROWS = (
    r"on 8 rows of discs, 4 held out, \d+ class(es)?\. .*2 steps of 8 images on cpu, learning rate \S+\. Output .*: "
)
DETECTOR = ("--detector_options", json.dumps(SMALL_DETECTOR))
PRETRAIN = ("--config_overrides", '{"num_hidden_layers": 1, "patch_size": 8}', "--image_size", "32", "--size", "tiny")


@pytest.mark.parametrize(
    ("words", "beginning", "results", "following"),
    [
        (
            ["pretrain", "discs", *TINY, *PRETRAIN, "--output_dir", "p", "--num_drawn", "0"],
            r"Pre-training on 8 rows of discs, 4 held out, \d classes\. .*M parameters in the .* on cpu, .*: p\.",
            ["p/c2fmae-vit-tiny", "p/decoder_results.json", "decoder on held-out rows: semantic_mean_iou"],
            ["c2fmae embed p/c2fmae-vit-tiny photos", "c2fmae push p/c2fmae-vit-tiny-pretraining NAME --preview p/"],
        ),
        (
            ["classify", "c2fmae", "photos", "--output_dir", "c", *TINY],
            r"Training c2fmae \(C2FMAEForImageClassification, \d\.\d M parameters, new head\) on 10 rows of photos, "
            r"2 held out, 2 classes\. .* on cpu, learning rate \S+\. Output folder: c\.",
            ["c/results.json", "fine_tuning, mean: top1_accuracy"],
            ['transformers.pipeline("image-classification", "c")', "c2fmae push c NAME --preview c/preview"],
        ),
        (
            ["classify", "c2fmae", "photos", "--output_dir", "k", "--knn"],
            r"Classifying frozen features by 20 nearest neighbours: c2fmae \(C2FMAEModel, .* M parameters\) .* 10 r",
            ["k/results.json", "knn, mean: top1_accuracy", "the commonest class alone: top1_accuracy 0.5000 (1 of 2)"],
            ["c2fmae classify c2fmae photos --output_dir"],
        ),
        (
            ["segment", "c2fmae", "discs", "--output_dir", "s", "--head_channels", "16", *TINY],
            rf"Training c2fmae \(UperNetForSemanticSegmentation, \d\.\d M parameters, new head\) {ROWS}s\.",
            ["s/predictions.png", "mean_iou 0."],
            ['transformers.pipeline("image-segmentation", "s")', "c2fmae push s NAME"],
        ),
        (
            ["detect", "c2fmae", "discs", "--output_dir", "d", "--num_drawn", "0", *TINY, *DETECTOR],
            rf"Training c2fmae \(MaskRCNNForObjectDetection, \d\.\d M parameters, new head\) {ROWS}d\.",
            ["d/results.json", "bbox_map 0."],
            ['transformers.pipeline("object-detection", "d")', "c2fmae push d NAME"],
        ),
        (
            ["embed", "c2fmae", "photos", "--output", "f.parquet"],
            r"Embedding 12 images of photos with c2fmae \(C2FMAEModel, .* M parameters\) on cpu\. .*: f\.parquet\.",
            ["f.parquet: features of 12 images"],
            ['pandas.read_parquet("f.parquet")'],
        ),
        (
            ["label", "photos", "l"],
            r"Labelling 12 images of photos with the classical labeller\. Output folder: l, split train\.",
            ["12 of 12 images labelled"],
            ["c2fmae validate l", "c2fmae pretrain l --output_dir"],
        ),
        (
            ["validate", "discs", "--output_dir", "v"],
            r"Reading every row of discs, split train\. Output folder: v\.",
            ["v/validation-train.json", "v/contact_sheet-train.png"],
            ["c2fmae pretrain discs --output_dir"],
        ),
        (
            ["visualize", "c2fmae", "photos/a", "--output_dir", "w", "--num_images", "1"],
            r"Drawing what c2fmae sees in 1 photograph, on cpu\. Output folder: w\.",
            ["w/index.html: "],
            ["open w/index.html"],
        ),
        (
            ["convert", "c2fmae", "t", "--format", "timm"],
            r"Converting c2fmae \(C2FMAEForPreTraining, \d\.\d M parameters\) to timm\.",
            ["t: VisionTransformer"],
            ['timm.create_model("local-dir:t", pretrained=True)'],
        ),
        (
            ["push", "c2fmae", "me/x", "--preview", "r"],
            r"Preview of c2fmae \(C2FMAEForPreTraining, \d\.\d M parameters\) as me/x\. Output folder: r\.",
            ["r: a preview, nothing was published"],
            ["look at r/README.md", "c2fmae push c2fmae me/x"],
        ),
    ],
    ids=[
        *("pretrain", "classify", "knn", "segment", "detect", "embed", "label", "validate", "visualize", "convert"),
        "push",
    ],
)
def test_a_command_begins_with_what_it_does_and_ends_with_what_to_do(
    processes, folder, words, beginning, results, following
):
    name, *rest = words
    done = processes.run(command(name), *rest, cwd=folder)
    assert done.code == 0, done.err
    assert re.search(beginning, done.out), done.out
    _, found, ending = done.out.rpartition("\nResults:\n")
    assert found
    made, _, steps = ending.partition("\nNext:\n")
    for text in results:
        assert f"  {text}" in made
    for text in following:
        assert text in steps
    both = done.out + done.err
    assert "{'" not in both
    for noise in ("Loading weights", "Writing model shards", "LOAD REPORT", "Warning", "*****"):
        assert noise not in both
    bars = [(name.strip(), share) for name, share in re.findall(r"^(.*?)\b(\d+)%\|", done.err, re.MULTILINE)]
    assert set(dict(bars).values()) <= {"100"}, bars  # the last state of each


def test_only_the_first_of_several_processes_prints(processes, folder):
    words = ["c2fmae", "photos", "--knn", "--use_cpu", "--output_dir", "second"]
    # The log and the bars; what the first one prints itself, it prints by transformers' word.
    done = processes.run(command("classify"), *words, cwd=folder, environment={"RANK": "1"})
    assert done.code == 0
    assert done.err == ""


def test_other_ranks_still_name_bad_rows(processes):
    script = """
import logging, os
os.environ["RANK"] = "1"
from c2fmae_hf.commands.console import set_up_output
set_up_output()
rows = logging.getLogger("c2fmae_hf.data.rows")
rows.warning("Skipped: row 7")
rows.warning("training rows: no pixel of 1 of 2 classes")
logging.getLogger("c2fmae_hf.data.splits").warning("rows are held out")
"""
    assert processes.run(script).err == "Skipped: row 7\n"


def test_a_line_of_a_log_is_printed_once(processes):
    script = """
import logging
from c2fmae_hf.commands.console import set_up_output
set_up_output()
set_up_output()
for name in ("c2fmae_hf", "huggingface_hub", "datasets", "transformers", "timm"):
    __import__(name)
    logging.getLogger(f"{name}.anything").warning("from %s", name)
"""
    names = ("c2fmae_hf", "huggingface_hub", "datasets", "transformers", "timm")
    assert [line.split("] ")[-1] for line in processes.run(script).err.splitlines()] == [f"from {n}" for n in names]


def test_a_head_that_is_new_is_no_warning_but_other_weights_are(folder, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    caplog.set_level(logging.WARNING, "transformers")
    load_with_new_parts(C2FMAEBackbone, str(folder / "c2fmae"), new=["fpn."], add_fpn=True)
    load_with_new_parts(AutoModelForImageClassification, str(folder / "vit"))
    assert "LOAD REPORT" not in caplog.text
    state = ViTModel.from_pretrained(folder / "vit").state_dict()
    lost = next(name for name in state if name.endswith("layernorm_before.weight"))
    del state[lost]
    ViTModel.from_pretrained(folder / "vit").save_pretrained(tmp_path, state_dict=state)
    load_with_new_parts(AutoModelForImageClassification, str(tmp_path))
    assert "LOAD REPORT" in caplog.text
    assert "layernorm_before.weight" in caplog.text


def test_what_is_to_be_typed_is_quoted_for_the_shell():
    assert shlex.split(type_in("embed", "my run/model", Path("a'b"))) == ["c2fmae", "embed", "my run/model", "a'b"]
