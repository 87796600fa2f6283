"""Runs that are killed again and again, and end with the weights of one that never was."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from c2fmae_hf.training.checkpoints import STAGING_FOLDER


SCRIPT = Path(__file__).with_name("killed_run.py")
MAX_STEPS = 24  # of a run that is killed at random


def run(processes, folder: Path, *arguments: object) -> dict | None:
    """What a run prints; `None` if it was killed."""
    result = processes.run(SCRIPT, folder, *arguments, environment={"HF_HUB_OFFLINE": "1"})
    if result.code == -signal.SIGKILL:
        return None
    assert result.code == 0, result.err[-3000:]
    return json.loads(result.out.strip().splitlines()[-1])


def last_checkpoint(folder: Path) -> int:
    return max((int(path.name.partition("-")[2]) for path in folder.glob("checkpoint-*")), default=0)


def draw_moment(generator: random.Random, last: int) -> str:
    """A random moment of any kind, soon after the last checkpoint."""
    kind = generator.choice(["step", "checkpoint", "rename", "evaluation"])
    if kind == "step":
        return f"step-{generator.randint(last, min(last + 5, MAX_STEPS - 1))}"
    every = 4 if kind == "evaluation" else 3
    steps = range(last - last % every + every, MAX_STEPS + 1, every)
    return f"{kind}-{generator.choice(steps[:2])}"


def check(
    processes,
    folder: Path,
    source: str,
    accumulation: int,
    moments: Sequence[str | None],
    workers: list[int],
    steps: int = MAX_STEPS,
) -> None:
    """`None` is a random moment."""
    generator = random.Random(accumulation + len(workers))
    whole = run(processes, folder / "whole", source, workers[0], accumulation, steps, "never")
    assert whole is not None
    assert len(whole["losses"]) == steps
    for number, given in enumerate(moments):
        moment = given or draw_moment(generator, last_checkpoint(folder / "run"))
        num_workers = workers[number % len(workers)]
        assert run(processes, folder / "run", source, num_workers, accumulation, steps, moment) is None
        for checkpoint in (folder / "run").glob("checkpoint-*"):  # none of them is half there
            assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json", "rng_state.pth"} <= {
                path.name for path in checkpoint.iterdir()
            }
        if moment.startswith(("checkpoint", "rename")):
            assert (folder / "run" / STAGING_FOLDER).is_dir()
    resumed = run(processes, folder / "run", source, workers[-1], accumulation, steps, "never")
    assert resumed == whole  # bit for bit: every loss of every step, and all weights


@pytest.mark.parametrize("source", ["map", "stream"])
def test_killed_once_of_each_kind(processes, tmp_path, source):
    moments = ["checkpoint-6", "evaluation-8", "step-10", "rename-12", "end-12"]
    check(processes, tmp_path, source, 2, moments, [0, 2], steps=12)


@pytest.fixture(scope="module")
def whole(processes, tmp_path_factory):
    """A run that nobody asked to end."""
    return run(processes, tmp_path_factory.mktemp("whole"), "map", 0, 1, 12, "never")


@pytest.mark.parametrize(
    ("moment", "workers", "saved"),
    [
        ("SIGTERM-7", 1, 8),
        ("group_SIGTERM-6", 2, 7),
        ("group_SIGINT-9", 1, 10),
        ("group_SIGHUP-7", 0, 8),
        ("saving_SIGTERM-6", 2, 6),
        ("evaluating_SIGTERM-8", 2, 8),
    ],
)
def test_a_run_that_is_asked_to_end_saves_and_is_resumed_to_the_same_end(
    processes, whole, tmp_path, moment, workers, saved
):
    """As a cluster's scheduler, a terminal or `timeout` asks: all processes of the group at once."""
    ended = processes.run(SCRIPT, tmp_path / "a", "map", workers, 1, 12, moment, environment={"HF_HUB_OFFLINE": "1"})
    name = moment.partition("-")[0].rpartition("_")[2]
    assert ended.code == (130 if name == "SIGINT" else -signal.Signals[name]), ended.err
    assert f"{name}: saved checkpoint-{saved}" in ended.err
    assert last_checkpoint(tmp_path / "a") == saved
    assert not (tmp_path / "a" / STAGING_FOLDER).exists()
    assert run(processes, tmp_path / "a", "map", workers, 1, 12, "never") == whole


@pytest.mark.slow
@pytest.mark.parametrize("workers", [[0], [2, 0, 1]], ids=["no workers", "changing workers"])
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("source", ["map", "stream"])
def test_killed_ten_times_at_random(processes, tmp_path, source, accumulation, workers):
    check(processes, tmp_path, source, accumulation, [None] * 10, workers)
