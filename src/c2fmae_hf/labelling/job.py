"""A labelling job from start to end: what it may go on from, engines, progress, and the files around the shards."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets
from datasets.info import DatasetInfosDict
from filelock import FileLock, Timeout
from huggingface_hub import DatasetCard, DatasetCardData
from PIL import Image
from tqdm.auto import tqdm

from ..utils.files import replace_file
from .engine import LabellingTask, run_local
from .labellers.base import Labeller
from .ray_engine import run_ray
from .records import OutputOptions, Reject, prepare_image
from .shards import ShardInfo, ShardStore, dataset_features, write_lines
from .sources.base import ImageSource


logger = logging.getLogger(__name__)


@dataclass
class LabellingSummary:
    """What a split holds after a job."""

    records: int
    rows: int
    rejects: int
    shards: int
    image_bytes: int
    map_bytes: int
    labelled_now: int
    """Images of this run, without those of earlier ones."""
    seconds: float

    def __str__(self) -> str:
        if self.rows == 0:
            return f"{self.records} images, all rejected"
        lines = [
            f"{self.rows} of {self.records} images labelled in {self.shards} shards, {self.rejects} rejected",
            f"{(self.image_bytes + self.map_bytes) / self.rows:.0f} bytes per image, of which maps "
            f"{self.map_bytes / self.rows:.0f}: they add {self.map_bytes / self.image_bytes:.1%}",
        ]
        if self.labelled_now:
            lines.append(
                f"this run: {self.labelled_now} images in {self.seconds:.1f} s "
                f"({self.labelled_now / self.seconds:.2f} images/s)"
            )
        else:
            lines.append("nothing was left to do")
        return "\n".join(lines)


def label_images(
    source: ImageSource,
    labeller: Labeller,
    output_dir: str | Path,
    split: str = "train",
    options: OutputOptions | None = None,
    engine: str = "local",
    num_workers: int = 1,
    num_threads: int = 2,
    max_reject_share: float = 0.5,
    overwrite: bool = False,
    ray_options: dict[str, Any] | None = None,
) -> LabellingSummary:
    """
    Label a source and write it as one split of a multi-granular dataset. Called again after an interruption, it goes
    on after the last finished shard of every part; the result is the same, byte for byte.

    Args:
        source, labeller, options: What is labelled, how, and how it is stored.
        output_dir: The dataset's folder; other splits in it stay.
        split (`str`): Name of the split.
        engine (`str`): `local`, or `ray` for a cluster.
        num_workers (`int`): Processes (local) or actors (Ray), each with a labeller of its own.
        num_threads (`int`): Threads per process that decode and encode.
        max_reject_share (`float`): The job stops if more of a shard's images fail.
        overwrite (`bool`): Delete the split first, if it is there.
        ray_options: Further arguments of [`~c2fmae_hf.labelling.ray_engine.run_ray`].

    Raises:
        `ValueError`: if an argument is wrong, or the split was begun with another source, labeller or options.
        `RuntimeError`: if another process is writing this dataset, or most images of a shard fail.
    """
    options = options or OutputOptions()
    root = Path(output_dir)
    if engine not in ("local", "ray"):
        raise ValueError(f"engine: expected 'local' or 'ray', got {engine!r}")
    if not split.replace("_", "").isalnum():
        raise ValueError(f"split: expected letters, digits and underscores, got {split!r}")
    for name, value in (("num_workers", num_workers), ("num_threads", num_threads)):
        if value < 1 and not (name == "num_workers" and value == 0):
            raise ValueError(f"{name}: expected at least 1, got {value}")
    store = ShardStore(root, split)
    (root / ".labelling").mkdir(parents=True, exist_ok=True)
    lock = FileLock(root / ".labelling" / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RuntimeError(f"output_dir: another process is writing {root}; wait for it or end it") from None
    try:
        if overwrite:
            store.remove()
        store.create_folders()
        store.remove_leftovers()
        _check_identity(root, store, source, labeller, options)
        labeller.prepare(_sample_images(source, options), root / "labeller")
        return _run(
            LabellingTask(
                source=source,
                labeller=labeller,
                store=store,
                features=dataset_features(labeller.id2label, source.label_feature),
                options=options,
                num_threads=num_threads,
                max_reject_share=max_reject_share,
            ),
            engine,
            num_workers,
            ray_options or {},
        )
    finally:
        lock.release()


def _check_identity(
    root: Path, store: ShardStore, source: ImageSource, labeller: Labeller, options: OutputOptions
) -> None:
    """Refuse to mix what was made differently; remember how this split is made."""
    identity = {
        "labeller": {"name": labeller.name, "settings": labeller.settings(), "id2label": _names(labeller)},
        "label_feature": repr(source.label_feature),
        "output": asdict(options),
        "source": source.fingerprint(),
        "versions": labeller.versions(),
        "summary": labeller.summary,
    }
    identity = json.loads(json.dumps(identity))
    for path in sorted((root / ".labelling").glob("*/job.json")):
        other = json.loads(path.read_text(encoding="utf-8"))
        is_own = path.parent == store.state
        fields = ("labeller", "label_feature", "output", "source") if is_own else ("labeller", "label_feature")
        different = [
            f"{field} ({', '.join(_differences(other[field], identity[field]))})"
            for field in fields
            if other[field] != identity[field]
        ]
        if different:
            raise ValueError(
                f"output_dir: split {path.parent.name!r} of {root} was made with another "
                f"{'; another '.join(different)}. Choose another output_dir"
                + (", the same settings, or overwrite" if is_own else " or the same settings")
            )
        if is_own and other["versions"] != identity["versions"]:
            logger.warning(
                "The split was begun with other versions: %s. What is left may be labelled a little differently.",
                ", ".join(_differences(other["versions"], identity["versions"])),
            )
            return
    with replace_file(store.state / "job.json") as temporary:
        temporary.write_text(json.dumps(identity, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _names(labeller: Labeller) -> list[str]:
    return [labeller.id2label[index] for index in range(len(labeller.id2label))]


def _differences(old: Any, new: Any) -> Iterator[str]:
    if not isinstance(old, dict) or not isinstance(new, dict):
        yield f"{str(old)[:80]} then, {str(new)[:80]} now"
        return
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            for difference in _differences(old.get(key), new.get(key)):
                yield f"{key}: {difference}"


def _sample_images(source: ImageSource, options: OutputOptions) -> Iterator[Image.Image]:
    """Images from all over a source, for a labeller that is fitted to it."""
    for record in source.sample(options.rows_per_shard):
        prepared = prepare_image(record, options)
        if not isinstance(prepared, Reject):
            yield prepared.image


def _run(task: LabellingTask, engine: str, num_workers: int, ray_options: dict[str, Any]) -> LabellingSummary:
    parts = task.source.parts(task.options.rows_per_shard)
    total = task.source.num_records(task.options.rows_per_shard)
    done: dict[int, list[ShardInfo]] = {}
    for shard in task.store.finished():
        done.setdefault(shard.part, []).append(shard)
    remaining = [part for part in parts if not any(shard.is_last for shard in done.get(part.index, ()))]
    already = sum(shard.records for shards in done.values() for shard in shards)
    started = time.perf_counter()
    labelled_now = 0
    try:
        with tqdm(
            total=total, initial=already, unit=" images", desc=f"Labelling {task.store.split}", mininterval=1
        ) as progress:
            if engine == "ray" and remaining:
                shards = run_ray(task, remaining, max(num_workers, 1), progress.update, **ray_options)
            else:
                shards = run_local(task, remaining, num_workers, progress.update)
            rejects = sum(len(shard.rejects) for found in done.values() for shard in found)
            for shard in shards if remaining else ():
                labelled_now += shard.records
                rejects += len(shard.rejects)
                progress.set_postfix(rejected=rejects, refresh=False)
    finally:
        # Also of a job that is stopped: what failed so far is worth knowing.
        splits = _finished_shards(task.store.root)
        _write_lists(task.store.root, splits)
    seconds = time.perf_counter() - started
    task.store.remove_leftovers()  # of workers that died and were replaced
    _write_card(task, splits)
    finished = splits[task.store.split]
    return LabellingSummary(
        records=sum(shard.records for shard in finished),
        rows=sum(shard.rows for shard in finished),
        rejects=sum(len(shard.rejects) for shard in finished),
        shards=sum(shard.rows > 0 for shard in finished),
        image_bytes=sum(shard.image_bytes for shard in finished),
        map_bytes=sum(shard.map_bytes for shard in finished),
        labelled_now=labelled_now,
        seconds=seconds,
    )


def _finished_shards(root: Path) -> dict[str, list[ShardInfo]]:
    """By split, `train` first."""
    names = [path.parent.name for path in (root / ".labelling").glob("*/job.json")]
    names.sort(key=lambda name: (name != "train", name))
    return {name: list(ShardStore(root, name).finished()) for name in names}


def _write_lists(root: Path, splits: dict[str, list[ShardInfo]]) -> None:
    """`manifest.jsonl` and `rejects.jsonl`, of all splits."""
    manifest, rejects = [], []
    for split, shards in splits.items():
        for shard in shards:
            if shard.rows > 0:
                entry = {
                    "file": f"data/{shard.name}.parquet",
                    "split": split,
                    "rows": shard.rows,
                    "bytes": shard.bytes,
                    "sha256": shard.sha256,
                }
                manifest.append(json.dumps(entry))
            rejects += [json.dumps({"split": split, **asdict(reject)}, ensure_ascii=False) for reject in shard.rejects]
    write_lines(root / "manifest.jsonl", manifest)
    write_lines(root / "rejects.jsonl", rejects)


def _write_card(task: LabellingTask, finished: dict[str, list[ShardInfo]]) -> None:
    root = task.store.root
    splits = []
    for split_name, shards in finished.items():
        rows = sum(shard.rows for shard in shards)
        if rows == 0:
            continue
        image_bytes, map_bytes = (sum(getattr(s, name) for s in shards) for name in ("image_bytes", "map_bytes"))
        splits.append(
            {
                "name": split_name,
                "rows": rows,
                "bytes": sum(shard.bytes for shard in shards),
                "rejects": sum(len(shard.rejects) for shard in shards),
                "shards": sum(shard.rows > 0 for shard in shards),
                "bytes_per_image": round((image_bytes + map_bytes) / rows),
                "map_bytes_per_image": round(map_bytes / rows),
                "map_share": f"{map_bytes / image_bytes:.1%}",
            }
        )
    if not splits:
        return
    number = sum(split["rows"] for split in splits)
    job = json.loads((task.store.state / "job.json").read_text(encoding="utf-8"))
    card_data = DatasetCardData(
        pretty_name=root.resolve().name,
        task_categories=["image-segmentation"],
        tags=["c2fmae", "multi-granular", "panoptic-segmentation"],
        size_categories=[_size_category(number)],
        configs=[
            {
                "config_name": "default",
                "data_files": [
                    {"split": split["name"], "path": f"data/{split['name']}-*.parquet"} for split in splits
                ],
            }
        ],
    )
    # `datasets` keeps what it has loaded under the folder's name and a checksum of this head, not of the data: without
    # the sizes, another dataset in a folder of the same name would be taken for this one.
    size = sum(split["bytes"] for split in splits)
    info = datasets.DatasetInfo(
        features=task.features,
        splits={
            split["name"]: {"name": split["name"], "num_bytes": split["bytes"], "num_examples": split["rows"]}
            for split in splits
        },
        download_size=size,
        dataset_size=size,
    )
    DatasetInfosDict({"default": info}).to_dataset_card_data(card_data)
    card = DatasetCard.from_template(
        card_data,
        template_path=str(Path(__file__).with_name("dataset_card_template.md")),
        pretty_name=card_data.pretty_name,
        folder=root.resolve().name,
        labeller=job["labeller"],
        summary=job["summary"],
        splits=splits,
        output=job["output"],
        id2label=job["labeller"]["id2label"],
        has_labels=task.source.label_feature is not None,
        settings=json.dumps(
            {"labeller": job["labeller"]["settings"], "output": job["output"], "versions": job["versions"]}, indent=1
        ),
        classes=", ".join(f"{index} {name}" for index, name in enumerate(job["labeller"]["id2label"])) + ".",
    )
    with replace_file(root / "README.md") as temporary:
        temporary.write_text(str(card), encoding="utf-8")


def _size_category(number: int) -> str:
    """The Hub's name for a number of rows."""
    bounds = ["1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T"]
    power = int(math.log10(max(number, 1)))
    if power < 3:
        return "n<1K"
    return f"{bounds[power - 3]}<n<{bounds[power - 2]}" if power < 12 else "n>1T"
