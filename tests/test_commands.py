"""The `c2fmae` command: its help, what it says of mistakes, and its exit codes."""

from __future__ import annotations

import re
from importlib.metadata import entry_points

import datasets
import pytest
from PIL import Image

from c2fmae_hf.commands import main as command
from c2fmae_hf.commands.arguments import recipe_names
from testing_utils import RECIPES, load_command, make_rows


TRAINING = ("pretrain", "classify", "segment", "detect")


@pytest.fixture(autouse=True)
def other_tests_keep_their_log(monkeypatch):
    """`set_up_output` is for a whole process; test_console.py covers it."""
    monkeypatch.setattr("c2fmae_hf.commands.console.set_up_output", lambda: None)


def run(capsys, *words: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    try:
        code = command.main(list(words))
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_console_script_is_installed():
    (found,) = entry_points(group="console_scripts", name="c2fmae")
    assert found.load() is command.main


def test_python_m_does_the_same(processes):
    done = processes.run("import runpy; runpy.run_module('c2fmae_hf', run_name='__main__', alter_sys=True)")
    assert done.code == 0
    assert done.out.strip() == command.overview()


def test_the_overview_names_every_command(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    for name in command.COMMANDS:
        assert re.search(rf"^  {name} +\w", out, re.MULTILINE)
        assert load_command(name).__doc__


@pytest.mark.parametrize("name", command.COMMANDS)
def test_help_is_short_and_about_the_command(capsys, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "118")
    code, out, _ = run(capsys, name, "--help")
    assert code == 0
    assert out.startswith(f"usage: c2fmae {name}")
    assert f"    c2fmae {name}" in out  # an example
    lines = out.splitlines()
    assert len(lines) <= 100  # two screens
    assert max(map(len, lines)) <= 120
    assert "python examples" not in out
    assert "Arguments(" not in out
    assert "(default: None)" not in out


@pytest.mark.parametrize("name", TRAINING)
def test_the_libraries_options_are_in_help_all(capsys, name):
    short, full = run(capsys, name, "--help")[1], run(capsys, name, "--help-all")[1]
    for option in ("--adam_epsilon", "--torch_compile", "--fsdp"):
        assert option not in short
        assert option in full
    for option in ("--output_dir", "--num_train_epochs", "--seed"):
        assert option in short
    for recipe in recipe_names(name):
        assert recipe in re.sub(r"-\s+", "-", short)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("pretrian",), "unknown command 'pretrian'; did you mean pretrain?"),
        (("pretrain", "--outpt_dir", "x"), "unknown option --outpt_dir; did you mean --output_dir?"),
        (("push", "a", "b", "--previw", "x"), "unknown option --previw; did you mean --preview?"),
        (("pretrain",), "expected DATASET_NAME or --dataset_name"),
        (("classify", "model", "data", "more"), "unexpected words: more"),
        (
            ("pretrain", "--recipe", "imagenet"),
            "recipe: expected a YAML or JSON file, or one of: collection-vit-small, demo, imagenet-vit-",
        ),
        (("label", "photos"), "expected OUTPUT_DIR or --output_dir"),
        (("pretrain", "data", "--size", "foo"), "size: expected one of ['tiny', "),
        (("pretrain", "data", "--config_overrides", "{"), "config_overrides: expected JSON"),
        (("pretrain", "data", "--config_overrides", "[1]"), "config_overrides: expected names and values as JSON"),
        (("pretrain", "data", "--config_overrides", '{"mask_rato": 0.5}'), "unknown fields ['mask_rato']"),
        (("pretrain", "data", "--image_size", "30"), "C2FMAEConfig.image_size"),
        (("classify", "model", "data", "--pooling", "foo"), "--pooling: invalid choice"),
    ],
)
def test_mistakes_in_the_words(capsys, words, message):
    code, _, err = run(capsys, *words)
    assert code == 2
    assert message in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("classify", "./nowhere", "data", "--knn"), "nowhere"),
        (
            ("embed", "./nowhere", "./photos", "--output", "x.parquet"),
            "source: expected a folder at 'photos', found none",
        ),
        (("validate", "nofolder"), "dataset: found no folder 'nofolder' here, and could not load it from the Hub"),
        (("embed", "nofolder", ".", "--output", "x"), "source: expected images in '.', found none"),
        (("export", "nofolder", "x"), "model: found no folder 'nofolder' here, and could not load it from the Hub"),
        (("segment", "nofolder", "data"), "dataset: found no folder 'data' here"),
        (
            ("pretrain", "file.txt", "--use_cpu"),
            "expected a folder, Parquet or tar files or a name on the Hub, got the file",
        ),
        (("validate", "./nowhere"), "dataset: expected a folder, Parquet or tar files at './nowhere', found nothing"),
        (
            ("push", "./nowhere", "me/x", "--preview", "x"),
            "nowhere: expected the folder of a saved model, found none",
        ),
        (("export", "./nowhere", "x"), "expected a folder or a name on the Hub, found no such folder"),
        (("convert", "./nowhere", "x"), "expected a folder or a name on the Hub, found no such folder"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_an_expected_mistake_is_one_line(capsys, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.txt").touch()
    code, _, err = run(capsys, *words)
    assert code == 1
    assert "Traceback" not in err
    (line,) = (line for line in err.splitlines() if "error: " in line)
    assert line.startswith(f"c2fmae {words[0]}: error: ")
    assert message in line


def test_switches_do_not_swallow_the_words_that_follow():
    args = load_command("classify").parse(["--knn", "model", "data", "--use_cpu"])[0]
    assert (args.knn, args.model, args.dataset_name) == (True, "model", "data")
    args = load_command("classify").parse(["--knn", "false", "model", "data", "--use_cpu"])[0]
    assert (args.knn, args.model) == (False, "model")
    assert (
        load_command("pretrain").parse(["--streaming", "data", "--max_steps", "9", "--use_cpu"])[0].dataset_name
        == "data"
    )


MISSING = """
import sys
for name in sys.argv[1].split(","):
    sys.modules[name] = None
import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in sys.argv[1].split(",") else find_spec(name, *rest)
from c2fmae_hf.commands.main import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize(
    ("missing", "words", "message"),
    [
        ("matplotlib", ("validate", "x"), "the contact sheet needs matplotlib: pip install"),
        ("matplotlib", ("segment", "x", "y", "--use_cpu"), "or pass --num_drawn 0"),
        ("pycocotools", ("detect", "x", "y", "--use_cpu"), "detection needs pycocotools: pip install"),
        (
            "pycocotools",
            ("label", ".", "out", "--labeller", "annotations", "--layout", "coco", "--annotations", "x"),
            "COCO's annotations needs pycocotools: pip install",
        ),
        ("matplotlib", ("pretrain", "x", "--use_cpu"), "or pass --num_drawn 0"),
        ("matplotlib", ("visualize", "x", "--output_dir", "out"), "drawing needs matplotlib: pip install"),
        ("onnxruntime", ("export", "x", "out"), "or pass --format pt2"),
        ("gradio", ("app", "x"), 'the page needs gradio: pip install "c2fmae-hf[app]"'),
        ("skimage,sklearn", ("label", ".", "out"), "the classical labeller needs skimage: pip install"),
        ("skimage,sklearn", ("demo", "--output_dir", "out"), "the demonstration needs skimage: pip install"),
    ],
)
def test_a_missing_package_is_told_at_the_start(processes, tmp_path, missing, words, message):
    done = processes.run(MISSING, missing, *words, cwd=tmp_path)
    assert done.code == 1, done.err
    assert message in done.err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("label", ".", "{}"),
        ("validate", "x", "--output_dir", "{}"),
        ("pretrain", "x", "--use_cpu", "--output_dir", "{}"),
        ("classify", "x", "y", "--use_cpu", "--output_dir", "{}"),
        ("classify", "x", "y", "--knn", "--use_cpu", "--output_dir", "{}"),
        ("segment", "x", "y", "--use_cpu", "--output_dir", "{}"),
        ("detect", "x", "y", "--use_cpu", "--output_dir", "{}"),
        ("embed", "x", "y", "--output", "{}/features.parquet"),
        ("visualize", "x", ".", "--output_dir", "{}"),
        ("convert", "x", "{}/x"),
        ("export", "x", "{}"),
        ("push", ".", "me/x", "--preview", "{}/x"),
    ],
    ids=lambda words: "-".join(words[:1] + words[3:4]).strip("-"),
)
def test_a_folder_that_cannot_be_written_to_is_told_at_the_start(capsys, tmp_path, monkeypatch, words):
    """Before models and data, of which there are none here."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    Image.new("RGB", (32, 32)).save(tmp_path / "x.png")
    folder = tmp_path / "file" / "out"  # not by its mode, which the administrator need not obey
    code, _, err = run(capsys, *(word.format(folder) for word in words))
    assert code == 1
    assert "expected a folder that can be written to, got " in err.splitlines()[-1]
    assert str(folder) in err.splitlines()[-1]


def test_the_home_folder_is_found_within_quotes(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    given = []
    monkeypatch.setattr(load_command("convert"), "main", given.extend)
    command.main(["convert", "~/photos/*.tar", "--output=~/x", "--split=a~b", "c=~/d"])
    assert given == ["/home/me/photos/*.tar", "--output=/home/me/x", "--split=a~b", "c=~/d"]


def test_a_mistake_of_ours_keeps_its_traceback(monkeypatch, capsys):
    module = load_command("validate")
    monkeypatch.setattr(module, "main", lambda args: {}["absent"])
    with pytest.raises(KeyError):
        command.main(["validate", "x"])


def test_what_a_data_loading_worker_says_is_one_line_too(tmp_path, monkeypatch, capsys):
    rows = make_rows(6).cast_column("image", datasets.Image(decode=False)).to_list()
    rows[2]["image"] = {"bytes": b"", "path": None}
    monkeypatch.chdir(tmp_path)
    datasets.Dataset.from_list(rows, features=make_rows(6).features).to_parquet("train.parquet")
    options = ("--use_cpu", "--size", "tiny", "--image_size", "32", "--num_drawn", "0", "--max_steps", "2")
    options += ("--config_overrides", '{"num_hidden_layers": 1, "patch_size": 8}', "--num_semantic_classes", "5")
    code, _, err = run(capsys, "pretrain", "train.parquet", *options, "--dataloader_num_workers", "1")
    assert code == 1
    (line,) = (line for line in err.splitlines() if "error: " in line)
    assert line.endswith("(r2), column 'image': expected an encoded image, got zero bytes")
    assert "Traceback" not in err
    _, _, err = run(capsys, "pretrain", "train.parquet", *options, "--streaming", "--dataloader_num_workers", "3")
    (line,) = (line for line in err.splitlines() if "error: " in line)
    assert line.endswith("(r2), column 'image': expected an encoded image, got zero bytes")


def test_a_traceback_on_request(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("C2FMAE_TRACEBACK", "1")
    with pytest.raises(FileNotFoundError):
        command.main(["validate", "./nowhere"])


def test_results_that_are_no_success(monkeypatch, capsys):
    module = load_command("validate")
    report = type("Report", (), {"is_valid": False})()
    monkeypatch.setattr(module, "main", lambda args: report)
    assert command.main(["validate", "x"]) == 1
    report.is_valid = True
    assert command.main(["validate", "x"]) == 0

    def stop(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "main", stop)
    assert command.main(["validate", "x"]) == 130
    assert "c2fmae validate: stopped" in capsys.readouterr().err


def test_every_recipe_is_called_by_its_name():
    found = {path.relative_to(RECIPES).with_suffix("").as_posix() for path in RECIPES.rglob("*.yaml")}
    assert found == {f"{name}/{recipe}" for name in command.COMMANDS for recipe in recipe_names(name)}
    for name in TRAINING:
        recipe = recipe_names(name)[-1]
        words = ["--use_cpu", "true", "--seed", "7"]
        by_name = load_command(name).parse(["--recipe", recipe, *words])
        by_path = load_command(name).parse([str(RECIPES / name / f"{recipe}.yaml"), *words])
        training = next(part for part in by_name if hasattr(part, "learning_rate"))
        assert training.seed == 7  # options override
        assert training.output_dir.startswith("runs/")
        assert type(by_path) is type(by_name)
