"""Incomplete, damaged and moved checkpoints; runs that are ended by signals or share a folder."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from c2fmae_hf.training.checkpoints import LOCK_FILE, STAGING_FOLDER, locked
from c2fmae_hf.utils.files import replace_folder
from test_trainer import make_trainer
from testing_utils import png, with_fields


SAVES = {"save_strategy": "steps", "save_steps": 3, "max_steps": 6}


def steps_in(folder: Path) -> list[int]:
    return sorted(int(path.name.partition("-")[2]) for path in folder.glob("checkpoint-*"))


def test_save_total_limit_keeps_the_latest_checkpoints(config, rows, tmp_path):
    arguments = {**SAVES, "save_total_limit": 2}
    make_trainer(config, rows, tmp_path, **{**arguments, "max_steps": 12}).train()
    assert steps_in(tmp_path) == [9, 12]
    # A run resumed from an earlier checkpoint keeps its own checkpoints, not the later ones of the old run.
    make_trainer(config, rows, tmp_path, **{**SAVES, "max_steps": 3}).train()
    make_trainer(config, rows, tmp_path, **arguments).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert 6 in steps_in(tmp_path)


def test_the_newest_checkpoint_is_kept_despite_a_wrong_clock(config, rows, tmp_path):
    make_trainer(config, rows, tmp_path, **SAVES).train()
    for path in tmp_path.glob("checkpoint-*"):  # written by a machine whose clock is ahead
        os.utime(path, (time.time() + 9999,) * 2)
    arguments = {**SAVES, "max_steps": 12, "save_total_limit": 2}
    make_trainer(config, rows, tmp_path, **arguments).train(resume_from_checkpoint=True)
    assert steps_in(tmp_path) == [9, 12]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_checkpoint_is_refused_with_another_seed_or_rows(config, rows, tmp_path, streaming):
    arguments = {**SAVES, "streaming": streaming}
    make_trainer(config, rows, tmp_path, **arguments).train()
    last = str(tmp_path / "checkpoint-3")
    with pytest.raises(ValueError, match=r"run's seed, 42, got 7, .*--model_name_or_path .*checkpoint-3"):
        make_trainer(config, rows, tmp_path, seed=7, **arguments).train(resume_from_checkpoint=last)
    if streaming:
        return
    with pytest.raises(ValueError, match="expected its run's rows, 12, got 9"):
        make_trainer(config, rows.select(range(9)), tmp_path, **arguments).train(resume_from_checkpoint=last)
    other = rows.select([*range(1, 12), 0])
    with pytest.raises(ValueError, match="expected its run's image_ids"):
        make_trainer(config, other, tmp_path, **arguments).train(resume_from_checkpoint=last)


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
    assert again.state.log_history[:-1] == trainer.state.log_history[:-1]  # the last entry is the run time


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "files.json"])
def test_a_checkpoint_that_was_copied_in_part_is_refused(config, rows, tmp_path, name):
    make_trainer(config, rows, tmp_path, **SAVES).train()
    (tmp_path / "checkpoint-6" / name).unlink()
    with pytest.raises(ValueError, match=rf"checkpoint-6: expected .*{name}|without {name}"):
        make_trainer(config, rows, tmp_path, **SAVES).train(resume_from_checkpoint=True)


def test_a_file_that_was_cut_off_is_named(config, rows, tmp_path):
    make_trainer(config, rows, tmp_path, **SAVES).train()
    weights = tmp_path / "checkpoint-6/model.safetensors"
    size = weights.stat().st_size
    os.truncate(weights, 100)
    with pytest.raises(ValueError, match=f"expected model.safetensors with {size} bytes, got 100 bytes. Copy"):
        make_trainer(config, rows, tmp_path, **SAVES).train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match="nowhere: expected the folder of a checkpoint, found no such folder"):
        make_trainer(config, rows, tmp_path, **SAVES).train(resume_from_checkpoint=str(tmp_path / "nowhere"))


class Kill(TrainerCallback):
    """Sends a signal to this process during a step."""

    def __init__(self, number: int = signal.SIGTERM) -> None:
        self.number = number

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 4:
            os.kill(os.getpid(), self.number)


def test_signals_that_nohup_ignores_stay_ignored(config, rows, tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        trainer = make_trainer(config, rows, tmp_path, callbacks=[Kill(signal.SIGHUP)], max_steps=6)
        assert trainer.train().global_step == 6
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_sigterm_saves_and_then_ends_the_process(config, rows, tmp_path):
    asked = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    try:
        trainer = make_trainer(config, rows, tmp_path, callbacks=[Kill()], dataloader_num_workers=1, max_steps=9)
        trainer.train()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert asked == [signal.SIGTERM]  # passed on once, after saving
    assert steps_in(tmp_path) == [5]
    assert make_trainer(config, rows, tmp_path).train(resume_from_checkpoint=True).global_step == 9


def hold(folder: str, ready, done) -> None:
    with locked(Path(folder)):
        ready.set()
        done.wait(60)


def test_two_runs_do_not_share_a_folder(config, rows, tmp_path, monkeypatch):
    monkeypatch.setattr("c2fmae_hf.training.checkpoints.LOCK_SECONDS", 0.1)
    context = multiprocessing.get_context("fork")  # which imports nothing again
    ready, done = context.Event(), context.Event()
    other = context.Process(target=hold, args=(str(tmp_path), ready, done))
    other.start()
    try:
        assert ready.wait(60)
        with pytest.raises(RuntimeError, match="another run is writing to it"):
            make_trainer(config, rows, tmp_path, max_steps=1).train()
    finally:
        done.set()
        other.join()
    make_trainer(config, rows, tmp_path, max_steps=1).train()
    assert not (tmp_path / LOCK_FILE).exists()


def test_a_run_within_a_run_does_not_share_its_folder(config, rows, tmp_path, monkeypatch):
    monkeypatch.setattr("c2fmae_hf.training.checkpoints.LOCK_SECONDS", 0.1)
    messages = []

    class Another(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            with pytest.raises(RuntimeError, match="another run is writing to it") as error:
                make_trainer(config, rows, tmp_path, max_steps=1).train()
            messages.append(error.value)

    make_trainer(config, rows, tmp_path, callbacks=[Another()], max_steps=1).train()
    assert len(messages) == 1


def test_a_full_disk_is_reported_at_the_start(config, rows, tmp_path, monkeypatch):
    trainer = make_trainer(config, rows, tmp_path, **{**SAVES, "max_steps": 1})
    needed = 3 * 4 * sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    needed += 4 * sum(p.numel() for p in trainer.model.parameters() if not p.requires_grad)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=needed - 1))
    with pytest.raises(OSError, match=r"expected room for a checkpoint, 0\.\d+ GB, got 0\.\d+ GB free"):
        trainer.train()
    assert trainer.state.global_step == 0
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=needed))
    assert trainer.train().global_step == 1
    (written,) = tmp_path.glob("checkpoint-*")
    files = {path.name: path.stat().st_size for path in written.iterdir()}
    assert files["model.safetensors"] + files["optimizer.pt"] < 1.2 * needed


def test_too_few_rows_for_a_batch_are_reported_at_the_start(config, rows, tmp_path):
    for number in ({"max_steps": 1}, {"num_train_epochs": 1, "max_steps": -1}):
        trainer = make_trainer(
            config, rows, tmp_path, per_device_train_batch_size=64, dataloader_drop_last=True, **number
        )
        with pytest.raises(ValueError, match="at least the rows of one batch, 64, got 12, and dataloader_drop_last"):
            trainer.train()


def test_files_of_a_killed_save_are_not_in_the_next_checkpoint(config, rows, tmp_path):
    left = tmp_path / STAGING_FOLDER / "checkpoint-3"
    left.mkdir(parents=True)
    (left / "rng_state_1.pth").write_text("of another number of processes")
    earlier = tmp_path / "checkpoint-6"
    earlier.mkdir()
    (earlier / "rng_state_1.pth").write_text("likewise")
    make_trainer(config, rows, tmp_path, **SAVES).train()
    assert not list(tmp_path.rglob("rng_state_1.pth"))
    assert not (tmp_path / STAGING_FOLDER).exists()


def test_the_best_checkpoint_is_recorded_with_its_final_path(config, rows, tmp_path):
    arguments = {**SAVES, "eval_strategy": "steps", "eval_steps": 3, "metric_for_best_model": "loss"}
    trainer = make_trainer(config, rows, tmp_path, load_best_model_at_end=True, **arguments)
    trainer.train()
    assert Path(trainer.state.best_model_checkpoint).is_dir()
    saved = json.loads((tmp_path / "checkpoint-6/trainer_state.json").read_text())
    assert Path(saved["best_model_checkpoint"]).parent == tmp_path


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    target = tmp_path / "model"
    for text in ("first", "second"):
        with replace_folder(target) as folder:
            (folder / "weights").write_text(text)
    for kind in ("tmp", "old"):  # left by killed processes, one of this process's number, as in containers
        for number in (1, os.getpid()):
            (tmp_path / f".model.{kind}-{number}").mkdir()
            (tmp_path / f".model.{kind}-{number}" / "weights").write_text("left")
    with pytest.raises(IsADirectoryError), replace_folder(target) as folder:
        folder.write_text("no file")
    assert (target / "weights").read_text() == "second"
    with replace_folder(target) as folder:
        (folder / "other").write_text("third")
    assert [path.name for path in target.iterdir()] == ["other"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_other_pixels_under_the_same_ids_are_refused(config, rows, tmp_path):
    make_trainer(config, rows, tmp_path, **SAVES).train()
    last = str(tmp_path / "checkpoint-3")
    other = [dict(row) for row in rows.cast_column("image", datasets.Image(decode=False))]
    other[0]["image"] = png(np.zeros((48, 48, 3), np.uint8))
    other = datasets.Dataset.from_list(other, features=rows.features)
    with pytest.raises(ValueError, match="expected its run's contents"):
        make_trainer(config, other, tmp_path, **SAVES).train(resume_from_checkpoint=last)
    # The same rows in another folder are accepted.
    rows.save_to_disk(tmp_path / "saved")
    copied = datasets.load_from_disk(tmp_path / "saved")
    assert make_trainer(config, copied, tmp_path, **SAVES).train(resume_from_checkpoint=last).global_step == 6


def test_changed_settings_are_logged_once(config, rows, tmp_path, caplog):
    make_trainer(config, rows, tmp_path, **SAVES).train()
    last = str(tmp_path / "checkpoint-3")
    make_trainer(config, rows, tmp_path, **SAVES).train(resume_from_checkpoint=last)
    assert "changed settings" not in caplog.text
    changed = with_fields(config, mask_ratio=0.5, loss_weights={"semantic": 2.0, "instance": 1.0, "image": 1.0})
    others = {"weight_decay": 0.1, "curriculum": "constant", "max_steps": 9}
    make_trainer(changed, rows, tmp_path, **{**SAVES, **others}).train(resume_from_checkpoint=last)
    (said,) = [line for line in caplog.messages if "changed settings" in line]
    for part in (
        "weight_decay 0.05 -> 0.1",
        "curriculum linear -> constant",
        "max_steps 6 -> 9",
        "mask_ratio 0.75 -> 0.5",
    ):
        assert part in said
    assert "loss_weights" in said
    assert said.count("->") == 5


def test_held_out_rows_are_not_dropped(config, rows, tmp_path):
    batches = {"per_device_eval_batch_size": 4}
    expected = make_trainer(config, rows, tmp_path, **batches)
    trainer = make_trainer(config, rows, tmp_path, dataloader_drop_last=True, **batches)
    assert len(trainer.eval_dataset) % 4
    assert trainer.evaluate()["eval_loss"] == expected.evaluate()["eval_loss"]
    assert len(trainer.get_train_dataloader()) == len(trainer.train_dataset) // trainer.args.train_batch_size
    assert trainer.args.dataloader_drop_last


def test_shares_of_a_run_are_no_changed_settings(config, rows, tmp_path, caplog):
    shares = {"max_steps": 9, "save_strategy": "steps", "save_steps": 0.3, "logging_steps": 0.2}
    shares |= {"eval_strategy": "steps", "eval_steps": 0.3}
    make_trainer(config, rows, tmp_path, **shares).train()
    again = make_trainer(config, rows, tmp_path, **shares)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert (again.args.save_steps, again.args.logging_steps, again.args.eval_steps) == (3, 2, 3)
    assert "do not match" not in caplog.text


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "trainer_state.json", "scheduler.pt"])
def test_a_damaged_file_of_the_right_size_is_named(config, rows, tmp_path, name):
    make_trainer(config, rows, tmp_path, **SAVES).train()
    file = tmp_path / "checkpoint-6" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 8] = bytes(8)
    file.write_bytes(content)
    for checkpoint in (True, str(tmp_path / "checkpoint-6"), tmp_path / "checkpoint-6"):
        with pytest.raises(ValueError, match=f"expected {name} as it was saved, got other content.*from another"):
            make_trainer(config, rows, tmp_path, **SAVES).train(resume_from_checkpoint=checkpoint)
    listed = json.loads((tmp_path / "checkpoint-6/files.json").read_text())
    for shorter in ({}, {"trainer_state.json": listed["trainer_state.json"]}):
        (tmp_path / "checkpoint-6/files.json").write_text(json.dumps(shorter))
        with pytest.raises(
            ValueError, match=r"files\.json: expected all files of the checkpoint, but \['config\.json'"
        ):
            make_trainer(config, rows, tmp_path, **SAVES).train(resume_from_checkpoint=True)
    (tmp_path / "checkpoint-6/files.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"files\.json: expected a JSON object, got list\. Copy the"):
        make_trainer(config, rows, tmp_path, **SAVES).train(resume_from_checkpoint=True)
