"""Pre-training in two processes, which is that of one: the same images, masks, losses and weights."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.torch import load_file

from c2fmae_hf.training.checkpoints import STAGING_FOLDER


pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).with_name("distributed_run.py")
# Tolerance for losses, and for weights after plain gradient descent: gradients are summed in another order.
TOLERANCE = 1e-5
# AdamW makes steps of the learning rate's size of gradients that are all but zero, and so of their rounding.
ADAMW_TOLERANCE = 1e-4
# Plain gradient descent, so that weights differ as gradients do.
PLAIN = {"optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant", "warmup_steps": 0}


@dataclass
class Run:
    folder: Path

    def rank(self, number: int) -> dict:
        return json.loads((self.folder / f"rank-{number}.json").read_text())

    def images(self, number: int, step: int) -> list[str]:
        return [name for batch in self.rank(number)["batches"] if batch["step"] == step for name in batch["images"]]

    def losses(self) -> list[list[float]]:
        names = ("loss", "semantic_loss", "instance_loss", "image_loss", "masked_semantic", "grad_norm")
        return [[entry[name] for name in names] for entry in self.rank(0)["losses"]]

    def difference(self, other: Run) -> float:
        own, others = (load_file(run.folder / "weights.safetensors") for run in (self, other))
        assert own.keys() == others.keys()
        return max((own[name] - others[name]).abs().max().item() for name in own)


def start(processes: int, script: Path, *arguments: object, fails: bool = False) -> str:
    """What the processes write to standard error."""
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command += [str(script), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    # In a session of its own: a test may signal all of it.
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=environment, start_new_session=True
    )
    assert (done.returncode != 0) == fails, done.stderr[-3000:]
    return done.stderr


def run(folder: Path, processes: int, *options: str, **arguments) -> Run:
    """Eight images a step in all, whatever the number of processes is."""
    arguments = {
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 3,
        "per_device_train_batch_size": 4 // processes,
        "gradient_accumulation_steps": 2,
        **arguments,
    }
    if processes > 1:
        arguments["ddp_backend"] = "gloo"
    start(processes, SCRIPT, folder, json.dumps(arguments), *options)
    return Run(folder)


def resumed(before: Run, folder: Path, processes: int, *options: str, **arguments) -> Run:
    """From the checkpoint at half time."""
    folder.mkdir()
    shutil.copytree(before.folder / "checkpoint-3", folder / "checkpoint-3")
    return run(folder, processes, "--resume", *options, **arguments)


@pytest.mark.parametrize("source", ["map", "stream"])
def test_processes_that_are_asked_to_end_save_and_go_on_to_the_same_end(tmp_path, source):
    options = ["--stream"] if source == "stream" else []
    plan = {
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 100,
        "per_device_train_batch_size": 2,
        "dataloader_num_workers": 1,
        "ddp_backend": "gloo",
    }
    start(2, SCRIPT, tmp_path / "whole", json.dumps(plan), *options)
    said = start(2, SCRIPT, tmp_path / "ended", json.dumps(plan), "--terminate", 2, *options, fails=True)
    assert "SIGTERM: saved checkpoint-3" in said
    assert [path.name for path in (tmp_path / "ended").glob("checkpoint-*")] == ["checkpoint-3"]
    assert not (tmp_path / "ended" / STAGING_FOLDER).exists()
    start(2, SCRIPT, tmp_path / "ended", json.dumps(plan), "--resume", *options)
    whole, ended = Run(tmp_path / "whole"), Run(tmp_path / "ended")
    assert ended.losses() == whole.losses()
    assert ended.difference(whole) == 0


def check_equal(one: Run, other: Run, tolerance: float = ADAMW_TOLERANCE) -> None:
    for ours, theirs in zip(one.losses(), other.losses(), strict=True):
        assert ours == pytest.approx(theirs, abs=TOLERANCE)
    assert one.difference(other) <= tolerance


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> Run:
    return run(tmp_path_factory.mktemp("one"), 1, **PLAIN)


def test_two_processes_are_one(tmp_path, single):
    pair = run(tmp_path / "two", 2, **PLAIN)
    check_equal(pair, single, TOLERANCE)
    # Two steps of eight are an epoch of 16 images: every one once, and in each step those of the single process.
    for step in range(6):
        together = pair.images(0, step) + pair.images(1, step)
        assert sorted(together) == sorted(single.images(0, step))
        assert len(pair.images(0, step)) == 4
    for epoch in range(3):
        steps = (2 * epoch, 2 * epoch + 1)
        seen = [name for rank in range(2) for step in steps for name in pair.images(rank, step)]
        assert sorted(seen) == sorted(f"r{index}" for index in range(16))
    masks = [[mask for batch in pair.rank(rank)["batches"] for mask in batch["masks"]] for rank in range(2)]
    assert all(mask not in masks[1] for mask in masks[0])
    alone = [mask for batch in single.rank(0)["batches"] for mask in batch["masks"]]
    assert sorted(masks[0] + masks[1]) == sorted(alone)
    # Four images fill the last batch; with other numbers accelerate repeats images, which then count twice.
    for name in ("eval_loss", "eval_semantic_loss", "eval_instance_loss", "eval_image_loss"):
        assert pair.rank(0)["metrics"][name] == pytest.approx(single.rank(0)["metrics"][name], abs=TOLERANCE)


@pytest.mark.parametrize("drop_last", [False, True])
def test_rows_that_do_not_divide(tmp_path, drop_last):
    """With 17 images in steps of four, the last step repeats three images, or is left out."""
    arguments = {"max_steps": -1, "num_train_epochs": 1, "gradient_accumulation_steps": 1, "save_strategy": "no"}
    pair = run(tmp_path, 2, "--rows", "17", dataloader_drop_last=drop_last, **arguments)
    steps = range(4 if drop_last else 5)
    seen = [name for rank in range(2) for step in steps for name in pair.images(rank, step)]
    assert len(seen) == 4 * len(steps)
    assert len(set(seen)) == (16 if drop_last else 17)


@pytest.mark.parametrize("fault", ["loss", "gradient"])
def test_what_is_not_finite_in_one_process_stops_both(tmp_path, fault):
    arguments = {"max_steps": 6, "per_device_train_batch_size": 2, "save_strategy": "no", "ddp_backend": "gloo"}
    start(2, SCRIPT, tmp_path, json.dumps(arguments), "--fault", fault, fails=True)
    report = json.loads((tmp_path / "non_finite.json").read_text())
    assert (report["step"], report["checkpoint"]) == (2, "non-finite-2")
    # The gradient is that of all processes.
    is_bad = {one["process"]: "inf" in str(one["losses"]) for one in report["processes"]}
    assert is_bad == ({1: True} if fault == "loss" else {0: False, 1: False})
    assert (tmp_path / "non-finite-2/optimizer.pt").is_file()


def test_a_checkpoint_of_two_processes_goes_on_in_one_and_back(tmp_path):
    """With AdamW, whose state goes along."""
    pair = run(tmp_path / "two", 2)
    check_equal(resumed(pair, tmp_path / "one", 1), pair)
    check_equal(resumed(pair, tmp_path / "again", 2), pair)


def test_processes_that_find_different_checkpoints_are_refused(tmp_path):
    arguments = {"max_steps": 4, "per_device_train_batch_size": 4, "save_strategy": "steps", "save_steps": 2}
    start(1, SCRIPT, tmp_path, json.dumps(arguments), "--apart")
    assert (tmp_path / "0/checkpoint-4").is_dir()
    arguments |= {"max_steps": 6, "ddp_backend": "gloo"}
    said = start(2, SCRIPT, tmp_path, json.dumps(arguments), "--apart", "--resume", fails=True)
    assert "resume_from_checkpoint: expected the same in every process, as they share output_dir, got" in said
    assert "['checkpoint-4', None]" in said
    assert not (tmp_path / "1/checkpoint-6").exists()


def test_sharded_weights_are_trained_as_whole_ones(tmp_path):
    """By PyTorch's `fully_shard`; the Trainer's `fsdp` shards on accelerators alone, and says nothing of it."""
    runs = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        start(processes, SCRIPT.with_name("sharded_run.py"), folder)
        runs.append(Run(folder))
    losses = [json.loads((one.folder / "losses.json").read_text()) for one in runs]
    assert losses[0] == pytest.approx(losses[1], abs=TOLERANCE)
    assert runs[0].difference(runs[1]) <= TOLERANCE


def test_streams_of_two_processes_are_those_of_one(tmp_path):
    """Accumulation makes up for the second process."""
    one = run(tmp_path / "one", 1, "--stream", per_device_train_batch_size=2, gradient_accumulation_steps=4)
    pair = run(tmp_path / "two", 2, "--stream")
    check_equal(pair, one)
    for step in range(6):
        assert sorted(pair.images(0, step) + pair.images(1, step)) == sorted(one.images(0, step))
    # Every process reads shards of its own, and every row once an epoch, of two steps.
    for first in (0, 2, 4):
        shares = [pair.images(rank, first) + pair.images(rank, first + 1) for rank in range(2)]
        assert sorted(shares[0] + shares[1]) == sorted(f"r{index}" for index in range(16))
        assert {frozenset(share) for share in shares} == {
            frozenset(f"r{index}" for index in half) for half in (range(8), range(8, 16))
        }
    # The metrics count every row once, though the second process repeats its batch.
    for name in ("eval_loss", "eval_semantic_loss", "eval_instance_loss", "eval_image_loss"):
        assert pair.rank(0)["metrics"][name] == pytest.approx(one.rank(0)["metrics"][name], abs=TOLERANCE)
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    check_equal(resumed(pair, tmp_path / "resumed", 1, "--stream", **options), pair)
