"""Arguments from defaults, a file and the command line."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from transformers import TrainingArguments

from c2fmae_hf.commands.arguments import find_checkpoint, parse_arguments
from c2fmae_hf.training.training_args import C2FMAETrainingArguments
from c2fmae_hf.transfer.fine_tuning_args import FineTuningArguments
from testing_utils import load_command


@dataclass
class First:
    name: str | None = field(default=None, metadata={"help": "A name."})
    number: int = field(default=1, metadata={"help": "A number."})


@dataclass
class Second:
    options: str | None = field(default=None, metadata={"help": "JSON."})


def test_order_of_precedence(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("name: of the file\noptions: {a: [1, 2]}\n")
    first, second = parse_arguments(
        (First, Second), [str(file), "--number", "5"], name="default", number=3, command="test"
    )
    assert (first.name, first.number) == ("of the file", 5)
    assert second.options == '{"a": [1, 2]}'
    first, _ = parse_arguments((First, Second), [str(file), "--name", "given"], number=3, command="test")
    assert (first.name, first.number) == ("given", 3)
    (file.with_suffix(".json")).write_text('{"number": 7}')
    assert parse_arguments((First,), [str(file.with_suffix(".json"))], command="test")[0].number == 7


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("nam: x", r"recipe.yaml: unknown argument 'nam'; did you mean name?"),
        ("- name", "recipe.yaml: expected names and values, got list"),
        ("name: [", "recipe.yaml: while parsing"),
        ("number: 4", "--name is required"),
        ("{name: x, number: 13}", "number: 13 brings bad luck"),
    ],
)
def test_mistakes_are_named(tmp_path, capsys, content, message):
    file = tmp_path / "recipe.yaml"
    file.write_text(content)

    def check(first: First) -> str | None:
        return f"number: {first.number} brings bad luck" if first.number == 13 else None

    with pytest.raises(SystemExit):
        parse_arguments((First,), [str(file)], command="test", required=("name",), check=check)
    assert message in capsys.readouterr().err


def test_a_word_does_not_replace_an_option(capsys):
    parse = load_command("label").parse
    source, _, output, *_ = parse(["--source", "photos", "out"])
    assert (source.source, output.output_dir) == ("photos", "out")
    with pytest.raises(SystemExit):
        parse(["photos", "out", "--output_dir", "other"])
    assert "out" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--checkpoint a/b", "--checkpoint is for --labeller panoptic or semantic+masks, got classical"),
        ("--layout coco --annotations x.json", "--layout is for --labeller annotations, got classical"),
        ("--labeller panoptic --checkpoint a/b --num_classes 4", "--num_classes is for --labeller classical"),
        ("--labeller annotations --annotations x.json", "--annotations is not for --layout folders"),
        ("--labeller annotations --class_folders true", "--class_folders is not for --layout folders"),
        ("--ray_address auto", "--ray_address is for --engine ray, got local"),
        ("--jpeg_quality 50", "--jpeg_quality is for resized images: pass --shortest_edge, too"),
        ("--max_reject_share 50", "--max_reject_share: expected a share in [0, 1], got 50"),
        ("--max_reject_share -1", "--max_reject_share: expected a share in [0, 1], got -1"),
        (
            "--labeller panoptic --checkpoint a/b --batch_size 0",
            "--batch_size: expected at least 1, got 0",
        ),
    ],
)
def test_options_that_labelling_would_ignore_or_not_survive(options, message, capsys):
    with pytest.raises(SystemExit):
        load_command("label").parse(["photos", "out", *options.split()])
    assert message in capsys.readouterr().err
    good = ["--labeller", "annotations", "--layout", "voc", "--source_split", "val"]
    load_command("label").parse(["photos", "out", *good])


@pytest.mark.parametrize("command", ["pretrain", "classify", "segment", "detect"])
def test_sharded_weights_are_refused_at_the_start(command, monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(SystemExit):
        load_command(command).parse(["model", "data", "--use_cpu"][command == "pretrain" :])
    assert "to shard them, use the Trainer in Python" in capsys.readouterr().err


def test_a_missing_file(capsys):
    with pytest.raises(SystemExit):
        parse_arguments((First,), ["nowhere.yaml"], command="test")
    assert "recipe: expected a YAML or JSON file, or one of: none; got 'nowhere.yaml'" in capsys.readouterr().err


def test_which_checkpoint_to_resume(tmp_path):
    def found(resume):
        return find_checkpoint(TrainingArguments(str(tmp_path), use_cpu=True, resume_from_checkpoint=resume))

    assert found("last") is None
    for step in (5, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
    assert found("last") == found("true") == str(tmp_path / "checkpoint-10")
    assert found("somewhere/else") == "somewhere/else"
    assert found(None) is found("false") is None


def test_switches_that_may_be_undecided_need_no_value():
    args, _ = parse_arguments((FineTuningArguments, First), ["--load_best_model_at_end"], name="x", command="test")
    assert args.load_best_model_at_end is True
    args, _ = parse_arguments(
        (FineTuningArguments, First), ["--load_best_model_at_end", "false"], name="x", command="test"
    )
    assert args.load_best_model_at_end is False


def test_processes_that_would_each_train_alone(monkeypatch, capsys):
    """`torchrun` without a GPU and without --use_cpu: transformers would start as many single runs."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit):
        parse_arguments((C2FMAETrainingArguments,), ["--learning_rate", "1"], command="pretrain")
    assert "2 processes were started where there is no GPU: add --use_cpu" in capsys.readouterr().err
