"""Arguments, training and results of `classify`, `segment` and `detect`."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torch import nn
from transformers import AutoConfig, PreTrainedModel, set_seed
from transformers.utils import CONFIG_NAME

from ..data.splits import load_splits, load_train_and_validation
from ..publishing.records import RESULTS_FILE, RunRecord
from ..publishing.repository import check_saved
from ..training.log_lines import announce, counted
from ..transfer.fine_tuning import FineTuningTrainer
from ..transfer.fine_tuning_args import FineTuningArguments
from ..utils.files import check_writable, write_json
from .arguments import HubArguments, check_output_dir, find_checkpoint, parse_arguments
from .console import model_in_words, print_results, type_in, use_as
from .drawing import try_to_draw


logger = logging.getLogger(__name__)


LAYER_DECAY_HELP = "Ratio of a layer's learning rate to the next one's; by default {}, and 1 with --from_scratch."


@dataclass
class TransferArguments:
    """Model and data."""

    #: Of pre-trained weights; random ones train at one rate.
    LAYER_DECAY: ClassVar[float] = 0.75

    model: str | None = field(
        default=None,
        metadata={"help": "A folder or Hub name that AutoModel loads, or timm's architecture with --from_scratch."},
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "A folder, Parquet files (in quotes), or what datasets.load_dataset takes."}
    )
    from_scratch: bool = field(default=False, metadata={"help": "Start from random weights, as a baseline."})
    evaluate_only: bool = field(default=False, metadata={"help": "Only score a fine-tuned model."})
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    validation_split: str = field(default="validation", metadata={"help": "Split to evaluate on."})
    validation_share: float = field(
        default=0.2, metadata={"help": "Without such a split, the share of training rows that is held out."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on this many rows, drawn at random."})
    drop_path_rate: float = field(default=0.0, metadata={"help": "Stochastic depth, of C2FMAE and timm."})
    layer_decay: float | None = field(default=None, metadata={"help": LAYER_DECAY_HELP.format(LAYER_DECAY)})
    ema_decay: float | None = field(default=None, metadata={"help": "Average the weights with this decay."})

    def load(self, seed: int, columns: Sequence[str], hint: str):
        """
        Training and validation rows.

        Raises:
            `ValueError`: if one of the columns is missing, with a hint.
        """
        if self.evaluate_only and self.train_split == self.validation_split:  # nothing trains
            rows = load_splits(self.dataset_name).get(self.validation_split)
            if rows is None:
                raise ValueError(f"dataset: expected the split {self.validation_split!r}, got none of this name")
            parts = (rows, rows)
        else:
            parts = load_train_and_validation(
                self.dataset_name,
                self.train_split,
                self.validation_split,
                self.max_train_samples,
                seed,
                self.validation_share,
            )
        for rows in parts:
            if not set(columns) <= set(rows.column_names):
                raise ValueError(f"dataset: expected the columns {list(columns)}, got {rows.column_names}. {hint}")
        return parts

    def record(
        self, task: str, training_args: FineTuningArguments, rows: Mapping[str, int], model: nn.Module, **splits: str
    ) -> RunRecord:
        """Start the run's record."""
        names = {"train": self.train_split, "validation": self.validation_split, **splits}
        return RunRecord(task, (self, training_args), rows=rows, splits=names, starting_model=model)


def parse_transfer(
    command: str,
    group: type[TransferArguments],
    args: list[str] | None,
    description: str,
    check: Callable[..., str | None],
    **options: Any,
) -> tuple:
    """
    Arguments of a task, of training and of publishing. Sets the seed, and checks the folders.

    Args:
        check: What is wrong with the arguments of this task, or `None`.
    """

    def find_mistake(own: Any, training_args: FineTuningArguments, hub_args: HubArguments) -> str | None:
        if own.evaluate_only and training_args.push_to_hub:
            return "--evaluate_only and --push_to_hub: publish the model and its score with c2fmae push ... --results"
        if own.evaluate_only and own.from_scratch:
            return "--evaluate_only and --from_scratch: random weights are no fine-tuned model"
        return check(own, training_args, hub_args)

    parsed = parse_arguments(
        (group, FineTuningArguments, HubArguments),
        args,
        description,
        command=command,
        positionals=("model", "dataset_name"),
        check=find_mistake,
        **options,
    )
    if parsed[0].layer_decay is None:
        parsed[0].layer_decay = 1.0 if parsed[0].from_scratch else group.LAYER_DECAY
    set_seed(parsed[1].seed)
    if Path(parsed[0].model).is_dir() and not parsed[0].from_scratch:
        check_saved(parsed[0].model)
    if parsed[0].evaluate_only or getattr(parsed[0], "protocol", "fine_tuning") != "fine_tuning":
        check_writable(parsed[1].output_dir)
        if (Path(parsed[1].output_dir) / CONFIG_NAME).is_file():
            raise ValueError(
                f"output_dir: expected a folder without a model, whose record would be replaced, got "
                f"{parsed[1].output_dir}; pass another --output_dir"
            )
    else:
        check_output_dir(parsed[1])
    return parsed


def load_fine_tuned(auto_class: Any, name: str, what: str, **options: Any) -> PreTrainedModel:
    """
    Load a model to evaluate.

    Args:
        auto_class: A class with `from_pretrained`, which gets the `options`.
        what (`str`): What the model should be, in words.

    Raises:
        `ValueError`: if it is another model, parts of which would be random.
    """
    own = getattr(auto_class, "config_class", None)
    found = AutoConfig.from_pretrained(name).model_type
    if own is not None and found != own.model_type:
        raise ValueError(f"model: expected {what} to evaluate, got {name}, a {found}")
    model, info = auto_class.from_pretrained(name, output_loading_info=True, **options)
    if info["missing_keys"]:
        raise ValueError(f"model: expected {what} to evaluate, got {name}, whose head would be random")
    return model


def check_classes(model: nn.Module, id2label: Mapping[int, str], is_named: bool) -> None:
    """
    Check that a model predicts the dataset's classes, for `--evaluate_only`.

    Args:
        id2label: The dataset's.
        is_named (`bool`): Whether the dataset names its classes. If not, it may have fewer than the model.

    Raises:
        `ValueError`: if it does not.
    """
    own = {int(index): name for index, name in model.config.id2label.items()}
    is_generic = all(name in (f"LABEL_{index}", f"class {index}") for index, name in own.items())
    if is_named and not is_generic:
        fits = own == dict(id2label)
    else:
        fits = len(own) == len(id2label) if is_named else len(id2label) <= len(own)
    if not fits:
        raise ValueError(f"classes: expected the model's, {own}, got the dataset's, {dict(id2label)}")


def words_of(args: FineTuningArguments) -> str:
    """The score that selects the best epoch, in words."""
    name = str(args.metric_for_best_model)
    return {"ranked_accuracy": "accuracy, then loss"}.get(name, name)


def train(
    trainer: FineTuningTrainer, transfer_args: TransferArguments, data: str, scores: Sequence[str]
) -> tuple[dict[str, float], float]:
    """
    Announce the run, train and save unless `evaluate_only` is set, and evaluate.

    Args:
        data (`str`): The user's name for the data.
        scores: Scores of the evaluation that may select the best epoch.

    Returns:
        The metrics, and the seconds that training took.
    """
    started = time.perf_counter()
    args = trainer.args
    model = trainer.accelerator.unwrap_model(trainer.model)
    classes = counted(model.config.num_labels, "class", "classes")
    held_out = len(trainer.eval_dataset)  # type: ignore[arg-type]
    if transfer_args.evaluate_only:
        if trainer.is_world_process_zero():
            what = model_in_words(transfer_args.model, model)
            print(
                f"Evaluating {what} on {counted(held_out, 'row')} of {data}, {classes}, on {args.device}.", flush=True
            )
    else:
        chosen_by = args.metric_for_best_model  # looked up at every evaluation, whether or not the best epoch is kept
        if chosen_by is not None and chosen_by.removeprefix("eval_") not in scores:
            raise ValueError(f"metric_for_best_model: expected one of {list(scores)}, got {chosen_by!r}")
        kept = f" The epoch with the best {words_of(args)} is kept." if args.load_best_model_at_end else ""
        rows = f"{counted(len(trainer.train_dataset), 'row')} of {data}, {held_out} held out, {classes}"
        start = "random weights" if transfer_args.from_scratch else "new head"
        announce(trainer, f"Training {model_in_words(transfer_args.model, model, start)} on {rows}.{kept}")
        trainer.train(resume_from_checkpoint=find_checkpoint(trainer.args))
        trainer.save_model()
        trainer.save_state()
        state = trainer.state
        if args.load_best_model_at_end and state.best_global_step is not None:
            epoch = state.best_global_step * (state.epoch or 0) / state.global_step
            logger.info("Kept: epoch %.3g of %.3g, chosen by its %s.", epoch, state.epoch, words_of(args))
    seconds = time.perf_counter() - started
    return trainer.evaluate(), seconds


def finish(
    args: TransferArguments,
    training_args: FineTuningArguments,
    results: Mapping[str, Any],
    record: Mapping[str, Any],
    seconds: float,
    draw: Callable[[Path], Any] | None = None,
    picture: str = "",
    publish: Callable[[], Any] | None = None,
    *,
    task: str,
    scores: Sequence[str],
) -> dict[str, Any]:
    """
    Write `results.json`, draw, publish, and print scores, files and what to do next.

    Args:
        results: Further content of `results.json`.
        record: The finished [`RunRecord`].
        draw (*optional*): Draws the picture, in the main process.
        picture (`str`): Its name in the output folder.
        publish (*optional*): Called if the arguments ask for it.
        task (`str`): Name of the pipeline that loads the model.
        scores: Lines to print.
    """
    content = {
        **results,
        "seconds": seconds,
        "settings": {**asdict(args), "seed": training_args.seed},
        "run": record,
    }
    folder = Path(str(training_args.output_dir))
    results_file, preview = folder / RESULTS_FILE, ("--preview", folder / "preview")
    files = [results_file]
    if "weights" in record:  # of a model that this run made
        files.insert(0, folder)
        next_steps = [use_as(task, folder), type_in("push", folder, "NAME", *preview)]
    elif args.evaluate_only:
        next_steps = [type_in("push", args.model, "NAME", "--results", results_file, *preview)]
    else:
        next_steps = [type_in("classify", args.model, args.dataset_name, "--output_dir", folder.parent / "fine-tuned")]
    if training_args.process_index == 0:
        write_json(results_file, content)
        if draw is not None and try_to_draw(folder / picture, draw):
            files.append(folder / picture)
    if training_args.push_to_hub and publish is not None:
        publish()
    if training_args.process_index == 0:
        print_results([*scores, *files], next_steps)
    return content
