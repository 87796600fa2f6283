"""
Validate a multi-granular dataset: read every row, report what it contains, and draw a contact sheet.

    c2fmae validate runs/labels
    c2fmae validate "data/*.parquet" --split validation --output_dir runs/checked

Prints the report, and writes validation-<split>.json and contact_sheet-<split>.png. Exit code: 0 if every row can be
used and every shard matches the manifest, else 1.
"""

from __future__ import annotations

from pathlib import Path

from ..data.validation import ValidationReport, validate_dataset
from ..utils.files import check_writable, write_json
from ..utils.packages import require
from .arguments import CommandParser
from .console import print_results, type_in
from .drawing import try_to_draw


def main(args: list[str] | None = None) -> ValidationReport:
    parser = CommandParser("validate", __doc__)
    parser.add_argument("dataset_name", help="A labelled folder, Parquet or tar files, or a dataset on the Hub.")
    parser.add_argument("--split", default="train", help="Split to read.")
    parser.add_argument("--output_dir", type=Path, help="Folder for results; by default beside the dataset's folder.")
    parser.add_argument(
        "--num_semantic_classes", type=int, help="Class ids must be below it; by default the dataset's number."
    )
    parser.add_argument("--num_threads", type=int, default=2, help="Threads that decode images.")
    parser.add_argument("--num_drawn", type=int, default=12, help="Rows on the contact sheet; 0 for no contact sheet.")
    parsed = parser.parse_args(args)
    if parsed.num_drawn > 0:
        require("matplotlib", "the contact sheet", " or pass --num_drawn 0")
    folder = parsed.output_dir
    if folder is None:
        path = Path(parsed.dataset_name).expanduser().resolve()
        folder = path.with_name(f"{path.name}-validation") if path.is_dir() else Path("validation")
    check_writable(folder)
    print(f"Reading every row of {parsed.dataset_name}, split {parsed.split}. Output folder: {folder}.", flush=True)
    report, samples = validate_dataset(
        parsed.dataset_name, parsed.split, parsed.num_semantic_classes, parsed.num_threads, parsed.num_drawn
    )
    print(report)
    results = [folder / f"validation-{parsed.split}.json"]
    write_json(results[0], report.to_dict())
    if samples:
        from ..pictures.contact_sheet import draw_contact_sheet

        sheet, title = folder / f"contact_sheet-{parsed.split}.png", f"{parsed.dataset_name}, split {parsed.split}"
        names = {entry["id"]: entry["name"] for entry in report.classes}
        if try_to_draw(sheet, lambda path: draw_contact_sheet(samples, path, names, title)):
            results.append(sheet)
    pretrain = type_in("pretrain", parsed.dataset_name, "--output_dir", "runs/pretrained")
    print_results(results, [pretrain] if report.is_valid and parsed.split == "train" else ())
    return report


def exit_code(report: ValidationReport) -> int:
    return 0 if report.is_valid else 1
