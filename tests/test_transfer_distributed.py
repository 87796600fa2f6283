"""Scores of several processes are those of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from test_detection import SMALL
from transfer_utils import save_discs, save_encoders


COMMON = ("--image_size", "32", "--use_cpu", "true", "--disable_tqdm", "true", "--save_strategy", "no")
COMMON += ("--per_device_train_batch_size", "2", "--per_device_eval_batch_size", "2", "--max_steps", "2")


def run(processes: int, script: str, model: str, data: Path, output: Path, *options: str) -> dict:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command += ["-m", "c2fmae_hf", script, "--model", model, "--dataset_name", str(data), "--output_dir", str(output)]
    command += [*COMMON, "--ddp_backend", "gloo", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((output / "results.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "options"),
    [
        ("segment", ("--head_channels", "16")),
        ("detect", ("--detector_options", json.dumps(SMALL))),
    ],
    ids=["segmentation", "detection"],
)
def test_two_processes_train_and_score_as_one(tmp_path, script, options):
    """Seven images of several widths, so that processes have unlike images, and one image is repeated to fill up."""
    model = save_encoders(tmp_path)["c2fmae"]
    data = save_discs(tmp_path / "discs", num_train=8, num_validation=7, widths=(48, 33, 40))
    run(2, script, model, data, tmp_path / "trained", *options)
    # One image at a time: a detector sees how far its batch is padded.
    options += ("--evaluate_only", "true", "--per_device_eval_batch_size", "1")
    trained = str(tmp_path / "trained")
    both, again = (run(n, script, trained, data, tmp_path / f"scored-{n}", *options) for n in (2, 1))
    assert both["results"] == pytest.approx(again["results"], abs=1e-6)
    key = "iou" if "iou" in both else "segm_map_by_class"
    assert both[key] == pytest.approx(again[key], abs=1e-6)
