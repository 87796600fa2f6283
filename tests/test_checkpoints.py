"""Checkpoints that were moved, copied in part or given up; runs that are ended, or stand in each other's way."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from c2fmae_hf.training.checkpoints import LOCK_FILE, STAGING_FOLDER, locked, rotate
from c2fmae_hf.utils.files import replace_folder
from test_trainer import make_trainer


SAVES = {"save_strategy": "steps", "save_steps": 3, "max_steps": 6}


def steps_in(folder: Path) -> list[int]:
    return sorted(int(path.name.partition("-")[2]) for path in folder.glob("checkpoint-*"))


def test_the_newest_checkpoint_is_kept_whatever_the_clock_says(config, rows, tmp_path):
    make_trainer(config, rows, tmp_path, **SAVES).train()
    for path in tmp_path.glob("checkpoint-*"):  # from a machine whose clock is ahead
        os.utime(path, (time.time() + 9999,) * 2)
    arguments = {**SAVES, "max_steps": 12, "save_total_limit": 2}
    make_trainer(config, rows, tmp_path, **arguments).train(resume_from_checkpoint=True)
    assert steps_in(tmp_path) == [9, 12]


def test_checkpoints_of_a_run_that_was_given_up_go_first(tmp_path):
    for step in (3, 6, 9, 12):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-mine").mkdir()
    rotate(tmp_path, 2, 4, {"checkpoint-3"})
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-3", "checkpoint-12", "checkpoint-mine"}
    rotate(tmp_path, None, 4, ())
    rotate(tmp_path, 1, 13, {"checkpoint-3"})
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-3", "checkpoint-mine"}


@pytest.mark.parametrize("streaming", [False, True])
def test_a_finished_run_trains_nothing_more(config, rows, tmp_path, streaming):
    arguments = {**SAVES, "streaming": streaming, "lr_scheduler_type": "constant", "warmup_steps": 0}
    trainer = make_trainer(config, rows, tmp_path, **arguments)
    trainer.train()
    again = make_trainer(config, rows, tmp_path, **arguments)
    assert again.train(resume_from_checkpoint=True).global_step == 6
    assert steps_in(tmp_path) == [3, 6]
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name
    assert again.state.log_history[:-1] == trainer.state.log_history[:-1]  # the last is the time it took


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "files.json"])
def test_a_checkpoint_that_was_copied_in_part_is_refused(config, rows, tmp_path, name):
    make_trainer(config, rows, tmp_path, **SAVES).train()
    (tmp_path / "checkpoint-6" / name).unlink()
    with pytest.raises(ValueError, match=rf"checkpoint-6: .*{name}.* is not there.* or resume from .*checkpoint-3$"):
        make_trainer(config, rows, tmp_path, **SAVES).train(resume_from_checkpoint=True)


def test_a_file_that_was_cut_off_is_named(config, rows, tmp_path):
    make_trainer(config, rows, tmp_path, **SAVES).train()
    weights = tmp_path / "checkpoint-6/model.safetensors"
    size = weights.stat().st_size
    os.truncate(weights, 100)
    with pytest.raises(ValueError, match=f"model.safetensors has 100 of {size} bytes; it was copied in part"):
        make_trainer(config, rows, tmp_path, **SAVES).train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match="nowhere: expected the folder of a checkpoint, found none"):
        make_trainer(config, rows, tmp_path, **SAVES).train(resume_from_checkpoint=str(tmp_path / "nowhere"))


@pytest.mark.parametrize("streaming", [False, True])
def test_a_checkpoint_is_of_one_run(config, rows, tmp_path, streaming, caplog):
    arguments = {**SAVES, "streaming": streaming}
    make_trainer(config, rows, tmp_path, **arguments).train()
    last = str(tmp_path / "checkpoint-3")
    with pytest.raises(ValueError, match=r"run's seed, 42, got 7: .*--model_name_or_path .*checkpoint-3"):
        make_trainer(config, rows, tmp_path, seed=7, **arguments).train(resume_from_checkpoint=last)
    if streaming:
        return
    with pytest.raises(ValueError, match="expected its run's number of training rows, 12, got 9"):
        make_trainer(config, rows.select(range(9)), tmp_path, **arguments).train(resume_from_checkpoint=last)
    other = rows.select([*range(1, 12), 0])
    with pytest.raises(ValueError, match="expected its run's fingerprint of the training rows"):
        make_trainer(config, other, tmp_path, **arguments).train(resume_from_checkpoint=last)
    more = {**arguments, "gradient_accumulation_steps": 2}
    make_trainer(config, rows, tmp_path, **more).train(resume_from_checkpoint=last)
    assert "was trained with 4 images a step, now there are 8" in caplog.text


class Kill(TrainerCallback):
    """A signal to the process itself, in a step."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 4:
            os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_saves_and_then_ends_the_process(config, rows, tmp_path):
    asked = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    try:
        trainer = make_trainer(config, rows, tmp_path, callbacks=[Kill()], dataloader_num_workers=1, max_steps=9)
        trainer.train()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert asked == [signal.SIGTERM]  # passed on, once, when all was saved
    assert steps_in(tmp_path) == [5]
    assert make_trainer(config, rows, tmp_path).train(resume_from_checkpoint=True).global_step == 9


def hold(folder: str, ready, done) -> None:
    with locked(Path(folder)):
        ready.set()
        done.wait(60)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such locks")
def test_two_runs_do_not_share_a_folder(config, rows, tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=hold, args=(str(tmp_path), ready, done))
    other.start()
    try:
        assert ready.wait(60)
        message = rf"another run is writing to it, process {other.pid} on .*choose another output_dir"
        with pytest.raises(RuntimeError, match=message):
            make_trainer(config, rows, tmp_path, max_steps=1).train()
    finally:
        done.set()
        other.join()
    make_trainer(config, rows, tmp_path, max_steps=1).train()
    assert not (tmp_path / LOCK_FILE).exists()


def test_a_folder_that_cannot_be_written_to_is_told_at_once(config, rows, tmp_path):
    (tmp_path / "file").write_text("no folder")
    trainer = make_trainer(config, rows, tmp_path / "run", max_steps=1)
    trainer.args.output_dir = str(tmp_path / "file/run")
    with pytest.raises(OSError, match="file/run: cannot be written to: "):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_full_disk_is_told_and_keeps_what_was_there(config, rows, tmp_path, monkeypatch):
    trainer = make_trainer(config, rows, tmp_path, **SAVES)
    save = trainer._save_optimizer_and_scheduler

    def save_or_fail(folder: str) -> None:
        if trainer.state.global_step == 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(folder)

    monkeypatch.setattr(trainer, "_save_optimizer_and_scheduler", save_or_fail)
    with pytest.raises(OSError, match=r"checkpoint-6: cannot be written, with \d+ MiB free: .*No space left"):
        trainer.train()
    assert steps_in(tmp_path) == [3]
    assert not (tmp_path / STAGING_FOLDER).exists()


def test_what_a_killed_save_left_is_not_in_the_next_checkpoint(config, rows, tmp_path):
    left = tmp_path / STAGING_FOLDER / "checkpoint-3"
    left.mkdir(parents=True)
    (left / "rng_state_1.pth").write_text("of another number of processes")
    earlier = tmp_path / "checkpoint-6"
    earlier.mkdir()
    (earlier / "rng_state_1.pth").write_text("likewise")
    make_trainer(config, rows, tmp_path, **SAVES).train()
    assert not list(tmp_path.rglob("rng_state_1.pth"))
    assert not (tmp_path / STAGING_FOLDER).exists()


def test_the_best_checkpoint_is_named_where_it_is(config, rows, tmp_path):
    arguments = {**SAVES, "eval_strategy": "steps", "eval_steps": 3, "metric_for_best_model": "loss"}
    trainer = make_trainer(config, rows, tmp_path, load_best_model_at_end=True, **arguments)
    trainer.train()
    assert Path(trainer.state.best_model_checkpoint).is_dir()
    saved = json.loads((tmp_path / "checkpoint-6/trainer_state.json").read_text())
    assert Path(saved["best_model_checkpoint"]).parent == tmp_path


def test_a_model_that_cannot_be_written_leaves_the_earlier_one(config, rows, tmp_path, monkeypatch):
    trainer = make_trainer(config, rows, tmp_path / "run")
    target = tmp_path / "model"
    trainer.save_model(str(target))
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    (target / "results.json").write_text("{}")  # what else is there stays

    def fail(folder: Path, *args, **kwargs) -> None:
        (Path(folder) / "model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(trainer.model, "save_pretrained", fail)
    with pytest.raises(OSError, match="No space left"):
        trainer.save_model(str(target))
    assert {path.name: path.read_bytes() for path in target.iterdir()} == {**before, "results.json": b"{}"}
    assert {path.name for path in tmp_path.iterdir()} <= {"model", "run"}


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    target = tmp_path / "model"
    for text in ("first", "second"):
        with replace_folder(target) as folder:
            (folder / "weights").write_text(text)
    (tmp_path / ".model.tmp-1").mkdir()  # left by a process that was killed
    with pytest.raises(IsADirectoryError), replace_folder(target) as folder:
        folder.write_text("no file")
    assert (target / "weights").read_text() == "second"
    with replace_folder(target) as folder:
        (folder / "other").write_text("third")
    assert [path.name for path in target.iterdir()] == ["other"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
