"""`c2fmae pretrain` and `c2fmae demo`, end to end, on small data."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModel

from c2fmae_hf import C2FMAEConfig, C2FMAEForPreTraining
from c2fmae_hf.commands import photographs
from testing_utils import RECIPES, load_command, make_rows, require_timm_local_dir


@pytest.fixture(scope="module")
def pretrain():
    return load_command("pretrain")


@pytest.fixture
def saved_rows(tmp_path) -> Path:
    rows = make_rows(16, size=72)
    datasets.DatasetDict({"train": rows, "validation": rows.select(range(4))}).save_to_disk(tmp_path / "rows")
    return tmp_path / "rows"


@pytest.fixture
def recipe(tmp_path, saved_rows) -> Path:
    """A small recipe, as a user would write it."""
    values = {
        "dataset_name": str(saved_rows),
        "output_dir": str(tmp_path / "run"),
        "size": "tiny",
        "image_size": 64,
        "config_overrides": {"num_hidden_layers": 2, "mask_ratio": 0.6},
        "curriculum": "linear",
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_steps": 2,
        "num_drawn": 2,
        "use_cpu": True,
        "disable_tqdm": True,
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_pretraining_writes_the_files_that_it_announces(pretrain, recipe, tmp_path):
    pretrain.main([str(recipe), "--base_learning_rate", "1e-2"])
    run = tmp_path / "run"
    names = {path.name for path in run.iterdir()}
    assert names >= {
        "c2fmae-vit-tiny",
        "c2fmae-vit-tiny-pretraining",
        "trainer_state.json",
        "reconstruction.png",
        "curves.png",
        "checkpoint-2",
        "checkpoint-4",
    }
    assert not any(name.startswith(".") for name in names)
    model = C2FMAEForPreTraining.from_pretrained(run / "c2fmae-vit-tiny-pretraining")
    assert model.config.num_semantic_classes == 5  # counted in the maps
    assert model.config.mask_ratio == 0.6
    encoder = AutoModel.from_pretrained(run / "c2fmae-vit-tiny")
    pixels = torch.randn(1, 3, 64, 64)
    assert torch.equal(encoder.eval()(pixels).last_hidden_state, model.c2fmae.eval()(pixels).last_hidden_state)
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "masked_random" in entry] == [1, 2, 3, 4]
    assert history[0]["learning_rate"] == 0.0
    assert history[1]["learning_rate"] == pytest.approx(1e-2 * 4 / 256)


def test_a_finished_output_folder_is_not_overwritten(pretrain, recipe, tmp_path):
    pretrain.main([str(recipe)])
    before = load_file(tmp_path / "run/c2fmae-vit-tiny/model.safetensors")
    with pytest.raises(ValueError, match=r"checkpoint-4 exists already. Pass --resume_from_checkpoint last"):
        pretrain.main([str(recipe)])
    trainer = pretrain.main([str(recipe), "--resume_from_checkpoint", "last", "--max_steps", "6"])
    assert trainer.state.global_step == 6
    after = load_file(tmp_path / "run/c2fmae-vit-tiny/model.safetensors")
    assert not torch.equal(before["norm.weight"], after["norm.weight"])


@pytest.mark.parametrize(
    "options",
    [
        ["--streaming", "true", "--num_semantic_classes", "5", "--eval_strategy", "no", "--shuffle_rows", "8"],
        [
            "--config_overrides",
            '{"granularities":["image"]}',
            "--curriculum",
            "constant",
            "--curriculum_weights",
            "0",
            "0",
            "1",
        ],
        ["--config_overrides", '{"decoder_type": "parallel", "input_granularities": ["semantic", "image"]}'],
        ["--curriculum", "step", "--curriculum_order", "random", "instance", "semantic", "--num_drawn", "0"],
    ],
    ids=["streaming", "mae", "parallel", "reversed"],
)
def test_variants_by_options_alone(pretrain, recipe, options, tmp_path):
    trainer = pretrain.main([str(recipe), *options, "--save_strategy", "no"])
    assert trainer.state.global_step == 4
    assert (tmp_path / "run/c2fmae-vit-tiny/model.safetensors").is_file()


def test_given_names_of_classes_are_kept_where_the_dataset_has_none(pretrain, recipe, tmp_path):
    make_rows(8, size=72).to_parquet(tmp_path / "rows.parquet")
    options = ["--dataset_name", str(tmp_path / "rows.parquet"), "--num_semantic_classes", "5", "--max_steps", "1"]
    options += ["--config_overrides", '{"semantic_id2label": {"0": "sky", "4": "cat"}}', "--save_strategy", "no"]
    pretrain.main([str(recipe), *options, "--eval_strategy", "no", "--num_drawn", "0"])
    saved = C2FMAEConfig.from_pretrained(tmp_path / "run/c2fmae-vit-tiny-pretraining")
    assert saved.semantic_id2label == {0: "sky", 4: "cat"}
    assert saved.num_semantic_classes == 5

    # Those of a starting point, too, though the number of classes is given.
    model_args = pretrain.ModelArguments(
        model_name_or_path=str(tmp_path / "run/c2fmae-vit-tiny-pretraining"), num_semantic_classes=5
    )
    model = pretrain.build_model(model_args, [make_rows(2, size=72)], "raise")
    assert model.config.semantic_id2label == {0: "sky", 4: "cat"}


def test_parquet_files_and_a_held_out_share(pretrain, recipe, tmp_path):
    """One argument selects another source; without a validation split, a share of the rows is held out."""
    make_rows(20, size=72).to_parquet(tmp_path / "mine-train.parquet")
    source = str(tmp_path / "mine-*.parquet")
    trainer = pretrain.main([str(recipe), "--dataset_name", source, "--validation_share", "0.2"])
    assert (len(trainer.train_dataset), len(trainer.eval_dataset)) == (16, 4)


def test_a_picture_that_cannot_be_drawn_loses_nothing(pretrain, recipe, tmp_path, monkeypatch, caplog, capsys):
    def fail(*args):
        raise RuntimeError("no fonts")

    monkeypatch.setattr("c2fmae_hf.pictures.reconstruction.draw_reconstruction", fail)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "reconstruction.png").touch()  # from an earlier run, so not a result of this one
    with caplog.at_level("INFO"):
        pretrain.main([str(recipe)])
    run = tmp_path / "run"
    assert f"{run / 'reconstruction.png'} could not be drawn: RuntimeError: no fonts" in caplog.text
    assert (run / "c2fmae-vit-tiny" / "model.safetensors").is_file()
    assert (run / "curves.png").is_file()
    results = capsys.readouterr().out.partition("Results:")[2]
    assert "curves.png" in results
    assert "reconstruction.png" not in results


def test_a_row_that_cannot_be_evaluated_does_not_lose_the_model(pretrain, recipe, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise ValueError("row 3: cannot be decoded")

    monkeypatch.setattr(pretrain, "evaluate_decoder", fail)
    with pytest.raises(ValueError, match="row 3"):
        pretrain.main([str(recipe)])
    for name in ("c2fmae-vit-tiny", "c2fmae-vit-tiny-pretraining"):
        assert (tmp_path / "run" / name / "model.safetensors").is_file()
    assert (tmp_path / "run" / "run.json").is_file()


def test_a_run_too_short_to_be_logged_still_ends_well(pretrain, recipe, tmp_path):
    pretrain.main([str(recipe), "--logging_steps", "100", "--eval_strategy", "no", "--max_steps", "2"])
    assert (tmp_path / "run/reconstruction.png").is_file()


def test_bad_arguments_are_named(pretrain, recipe, tmp_path, capsys):
    values = yaml.safe_load(recipe.read_text())
    recipe.write_text(yaml.safe_dump({**values, "learning_rat": 1.0}))
    with pytest.raises(SystemExit):
        pretrain.main([str(recipe)])
    assert "unknown argument 'learning_rat'; did you mean learning_rate?" in capsys.readouterr().err
    recipe.write_text(yaml.safe_dump({**values, "train_split": "training"}))
    with pytest.raises(ValueError, match=r"train_split: expected one of \['train', 'validation'\], got 'training'"):
        pretrain.main([str(recipe)])
    with pytest.raises(SystemExit):
        pretrain.main(["--output_dir", str(tmp_path / "x")])


@pytest.mark.parametrize("path", sorted((RECIPES / "pretrain").glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_are_valid(pretrain, path):
    more = ["--dataset_name", "photos"] if path.stem == "photographs" else []
    data_args, model_args, training_args, *_ = pretrain.parse([str(path), "--use_cpu", "true", *more])
    assert data_args.dataset_name
    overrides = json.loads(model_args.config_overrides or "{}")
    config = pretrain.C2FMAEConfig.from_size(model_args.size, image_size=model_args.image_size, **overrides)
    assert config.num_patches > 0
    assert training_args.learning_rate > 0


# Photographs without label maps


@pytest.fixture
def photos(tmp_path) -> Path:
    for index, row in enumerate(make_rows(9, size=72)):
        (tmp_path / "photos" / "more").mkdir(parents=True, exist_ok=True)
        row["image"].save(tmp_path / "photos" / ("more" if index % 2 else ".") / f"{index}.png")
    return tmp_path / "photos"


SMALL = ["--image_size", "32", "--use_cpu", "true", "--disable_tqdm", "true", "--dataloader_num_workers", "0"]


def test_a_folder_of_photographs_is_labelled_and_trained_on(pretrain, photos, tmp_path, caplog, capsys):
    caplog.set_level("INFO")
    words = [str(photos), "--output_dir", str(tmp_path / "run"), *SMALL, "--num_drawn", "1", "--logging_steps", "1"]
    trainer = pretrain.main([*words, "--max_steps", "2"])
    assert trainer.state.global_step == 2
    assert (len(trainer.train_dataset), len(trainer.eval_dataset)) == (8, 1)
    assert trainer.model.config.num_semantic_classes == 4
    assert trainer.model.config.hidden_size == 192  # the recipe's size
    for name in ("c2fmae-vit-tiny", "c2fmae-vit-tiny-pretraining", "reconstruction.png", "curves.png", "dataset/data"):
        assert (tmp_path / "run" / name).exists()
    assert "9 photographs without label maps" in caplog.text
    assert "c2fmae label" in caplog.text
    printed = capsys.readouterr().out
    assert "2 steps of 16 images on cpu" in printed
    record = json.loads((tmp_path / "run/run.json").read_text(encoding="utf-8"))
    assert record["label_maps"].startswith("The maps come from classical segmentation without a trained model")
    assert f"\nNext:\n  c2fmae embed {tmp_path}/run/c2fmae-vit-tiny {photos} --output features.parquet\n" in printed
    # Run again: labels are reused, and training resumes.
    again = pretrain.main([*words, "--max_steps", "3", "--resume_from_checkpoint", "last"])
    assert again.state.global_step == 3


LONG_LABELLING = """
import sys, time
from c2fmae_hf.commands import pretrain
label = pretrain.label_photographs
def label_slowly(*args):
    time.sleep(25)
    label(*args)
pretrain.label_photographs = label_slowly
pretrain.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_labelling_may_take_longer_than_processes_wait_for_each_other(photos, tmp_path):
    (tmp_path / "run.py").write_text(LONG_LABELLING)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(tmp_path / "run.py"), str(photos), "--output_dir", str(tmp_path / "run"), *SMALL]
    command += ["--num_drawn", "0", "--ddp_backend", "gloo", "--ddp_timeout", "15"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    for steps in ("1", "2"):  # labelling, and checking what was labelled
        options = ["--max_steps", steps, "--resume_from_checkpoint", "last"]
        done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=300, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
        assert not list((tmp_path / "run/dataset/.labelling").glob("done-*"))


def test_the_number_of_steps_follows_from_the_number_of_photographs(pretrain, photos, tmp_path):
    def arguments(*words: str):
        words = [str(photos), "--use_cpu", "true", *words]
        training_args = pretrain.parse(words)[2]
        pretrain.set_length(words, training_args, 12)
        return training_args

    assert (arguments().max_steps, arguments().train_batch_size) == (400, 16)
    assert arguments("--per_device_train_batch_size", "64").max_steps == 100
    assert arguments("--max_steps", "7").max_steps == 7
    assert arguments("--num-train-epochs", "7").max_steps == -1
    assert arguments("--recipe", "demo").max_steps == 420
    for number in (3, 5):  # 3 is transformers' default
        (tmp_path / "own.yaml").write_text(f"num_train_epochs: {number}\nsize: tiny\n")
        args = arguments("--recipe", str(tmp_path / "own.yaml"))
        assert (args.max_steps, args.num_train_epochs) == (-1, number)
    assert arguments("--recipe", "photographs").max_steps == 400
    assert arguments("--model_name_or_path", "model").max_steps == 400
    # 100 passes, within bounds.
    numbers = {48: 6_400, 1_000: 100_000, 20_000: 1_000_000, 1_281_167: 12_811_670}
    assert {number: photographs.choose_steps(number, 1) for number in numbers} == numbers
    assert photographs.choose_steps(1_000, 256) == 391


def test_the_command_line_s_rate_goes_before_the_recipe_s(pretrain):
    def rate(*words: str) -> float:
        return pretrain.parse(["photos", "--use_cpu", "true", *words])[2].learning_rate

    for recipe in ((), ("--recipe", "photographs")):
        assert rate(*recipe) == 1.5e-3
        assert rate(*recipe, "--base_learning_rate", "1e-3") == pytest.approx(1e-3 * 16 / 256)
        assert rate(*recipe, "--learning_rate", "2e-3") == 2e-3


def test_some_rows_are_drawn_of_all_classes(pretrain, capsys, caplog):
    rows = make_rows(40).add_column("label", [index // 10 for index in range(40)])
    splits = {"train": rows, "validation": rows}
    command = ["photos", "--use_cpu", "true", "--max_train_samples", "20", "--max_eval_samples", "20"]
    train, held_out, _ = pretrain.choose_rows(splits, pretrain.parse(command)[0], seed=0)
    assert len(train) == len(held_out) == 20
    assert set(train["label"]) == set(held_out["label"]) == {0, 1, 2, 3}
    data_args = pretrain.parse([*command, "--validation_split", "tset"])[0]
    for data_args.streaming in (False, True):
        with pytest.raises(
            ValueError, match=r"validation_split: expected one of \['train', 'validation'\], got 'tset'"
        ):
            pretrain.choose_rows(splits, data_args, seed=0)
    # Rows that train do not score, and other splits that are not used are named.
    same = pretrain.parse(["photos", "--use_cpu", "true", "--validation_split", "train"])[0]
    train, held_out, name = pretrain.choose_rows(splits, same, seed=0)
    assert (len(train), len(held_out), name) == (38, 2, "held out of train")
    assert not set(train["image_id"]) & set(held_out["image_id"])
    pretrain.choose_rows({"train": rows, "val": rows}, pretrain.parse(command)[0], seed=0)
    assert "Rows of 'train' are held out; the other splits are not used: ['val']." in caplog.text
    with pytest.raises(SystemExit):
        pretrain.parse([*command, "--validation_share", "20"])
    assert "validation_share: expected a number from 0 (hold none out) to below 1, got 20" in capsys.readouterr().err


def test_a_mistake_is_named_before_the_labelling(pretrain, tmp_path, capsys):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    Image.new("RGB", (64, 64), "red").save(tmp_path / "b.png")
    command = [str(tmp_path), "--use_cpu", "true", "--output_dir", str(tmp_path / "out"), "--num_drawn", "0"]
    with pytest.raises(ValueError, match=r"train_split: expected one of \['train'\], got 'trian'"):
        pretrain.main([*command, "--train_split", "trian"])
    with pytest.raises(SystemExit):
        pretrain.main([*command, "--streaming", "true"])
    assert "--streaming needs --max_steps, since a stream has no length" in capsys.readouterr().err
    assert not (tmp_path / "out/dataset").exists()


def test_a_number_of_a_stream_s_rows_is_refused(pretrain, capsys):
    with pytest.raises(SystemExit):
        pretrain.parse(
            ["photos", "--use_cpu", "true", "--streaming", "true", "--max_steps", "9", "--max_train_samples", "10"]
        )
    assert (
        "--max_train_samples and --streaming: a stream is read row by row; set --max_steps" in capsys.readouterr().err
    )


def test_other_datasets_are_not_taken_for_a_folder_of_photographs(pretrain, saved_rows, tmp_path):
    (tmp_path / "empty").mkdir()
    for name in (saved_rows, tmp_path / "empty", tmp_path / "absent", "me/on-the-hub", None):
        assert photographs.open_photographs(name if name is None else str(name)) is None


def test_labelled_rows_have_the_settings_of_photographs(pretrain, saved_rows):
    def parse(*words: str) -> tuple[str | None, float, int]:
        _, model, training, *_ = pretrain.parse([str(saved_rows), "--use_cpu", "true", *words])
        return model.size, round(training.learning_rate, 6), training.train_batch_size

    assert parse() == ("tiny", 1.5e-3, 16)
    assert parse("--per_device_train_batch_size", "256") == ("tiny", 1.5e-3, 256)  # not in proportion
    assert parse("--size", "base") == ("base", 1.5e-4, 16)
    assert parse("--base_learning_rate", "1.6e-3") == ("tiny", 1e-4, 16)
    assert parse("--model_name_or_path", "model") == (None, 1.5e-4, 16)
    assert parse("--streaming", "true", "--max_steps", "9")[::2] == (None, 8)
    assert parse("--recipe", "imagenet-vit-base")[0] == "base"


def test_the_folder_of_a_run_is_refused_as_photographs(pretrain, photos):
    (photos / "run.json").write_text("{}")
    with pytest.raises(ValueError, match=r"got the folder of a run; is .*dataset meant\?"):
        pretrain.main([str(photos), "--use_cpu", "true"])


def test_one_photograph_is_not_enough(pretrain, photos, tmp_path):
    for path in sorted(photos.rglob("*.png"))[1:]:
        path.unlink()
    with pytest.raises(ValueError, match="expected at least 2 photographs, got 1"):
        pretrain.main([str(photos), "--output_dir", str(tmp_path / "run"), *SMALL])


def test_the_error_for_a_dataset_without_maps_says_what_to_do(pretrain, tmp_path):
    make_rows(4).select_columns(["image"]).to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match=r"c2fmae label SOURCE OUTPUT_DIR"):
        pretrain.main(
            [
                str(tmp_path / "rows.parquet"),
                "--output_dir",
                str(tmp_path / "run"),
                *SMALL,
                "--size",
                "tiny",
                "--num_semantic_classes",
                "4",
            ]
        )


@pytest.mark.slow  # tests/test_kill_and_resume.py tests more cases in less time
def test_a_killed_process_resumes_to_the_same_weights(recipe, tmp_path):
    """Kill training with SIGKILL, then run the same command again."""
    options = ["--max_steps", "30", "--save_steps", "5", "--eval_strategy", "no", "--num_drawn", "0"]
    options += ["--dataloader_num_workers", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def command(folder: str, *more: str) -> list[str]:
        return [
            sys.executable,
            "-m",
            "c2fmae_hf",
            "pretrain",
            str(recipe),
            *options,
            "--output_dir",
            str(tmp_path / folder),
            *more,
        ]

    subprocess.run(command("whole"), check=True, env=environment, capture_output=True, timeout=240)
    process = subprocess.Popen(command("killed"), env=environment, start_new_session=True, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while not (tmp_path / "killed/checkpoint-10/trainer_state.json").is_file():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed/c2fmae-vit-tiny").exists()
    resume = command("killed", "--resume_from_checkpoint", "last")
    subprocess.run(resume, check=True, env=environment, capture_output=True, timeout=240)
    weights, others = (
        load_file(tmp_path / folder / "c2fmae-vit-tiny-pretraining/model.safetensors")
        for folder in ("whole", "killed")
    )
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)


# The demonstration


@pytest.fixture(params=[["coffee", "chelsea"], pytest.param(None, marks=pytest.mark.slow)], ids=["two", "all"])
def demo_dataset(request, tmp_path, monkeypatch) -> datasets.DatasetDict:
    """With two of the photographs, and with all."""
    folder = tmp_path / "demo" / "dataset"
    module = load_command("demo")
    photographs = module.embedded_photographs(request.param)
    monkeypatch.setattr(module, "embedded_photographs", lambda: photographs)
    module.save_dataset(folder)
    assert [path.name for path in folder.parent.iterdir()] == ["dataset"]
    with pytest.raises(SystemExit):
        module.main(["--output_dir", str(folder)])
    return datasets.load_from_disk(str(folder))


def test_demo_dataset(request, demo_dataset):
    import numpy as np

    from c2fmae_hf.data.rows import semantic_id2label

    is_whole = "all" in request.node.name
    assert len(demo_dataset["train"]) >= (300 if is_whole else 30)
    assert len(demo_dataset["validation"]) >= (30 if is_whole else 6)
    assert len(semantic_id2label(demo_dataset["train"].features)) == 8
    for split in demo_dataset.values():
        for row in split.select(range(0, len(split), 10)):
            semantic, instance = np.asarray(row["semantic"]), np.asarray(row["instance"])
            assert row["image"].size == semantic.shape[::-1] == instance.shape[::-1] == (192, 192)
            assert sorted(np.unique(semantic).tolist()) == row["semantic_classes"]
            # An instance lies within one class.
            for instance_id in np.unique(instance)[1:]:
                assert len(np.unique(semantic[instance == instance_id])) == 1
    # Held-out tiles share no pixel with training tiles.
    corners = {split: [row.rsplit("_", 2) for row in rows["image_id"]] for split, rows in demo_dataset.items()}
    for name, _, left in corners["validation"]:
        right_edges = [int(x) + 192 for other, _, x in corners["train"] if other == name]
        assert not right_edges or max(right_edges) <= int(left)


@require_timm_local_dir
def test_both_libraries_load_the_encoder(pretrain, recipe, tmp_path, capsys):
    pretrain.main([str(recipe), "--save_strategy", "no", "--config_overrides", "{}", "--num_drawn", "0"])
    image = make_rows(1, size=90)[0]["image"]
    assert load_command("demo").compare_libraries(tmp_path / "run/c2fmae-vit-tiny", image) <= 1e-5
    assert "without c2fmae_hf" in capsys.readouterr().out
