"""A labelled dataset is published, loaded and labelled again by name, over real HTTP, on loopback."""

from __future__ import annotations

from pathlib import Path

from c2fmae_hf.labelling.job import label_images
from c2fmae_hf.labelling.labellers.classical import ClassicalLabeller
from c2fmae_hf.labelling.records import OutputOptions
from c2fmae_hf.labelling.sources.folder import FolderSource
from hub_faults import TOKENS
from labelling_utils import write_photographs


SCRIPT = """
import sys
import datasets, huggingface_hub, numpy as np
folder = sys.argv[1]
rows = datasets.load_dataset(folder)
rows.push_to_hub("me/pushed")
api = huggingface_hub.HfApi()
api.create_repo("me/uploaded", repo_type="dataset")
api.upload_folder(repo_id="me/uploaded", repo_type="dataset", folder_path=folder, ignore_patterns=".labelling/*")
for name in ("me/pushed", "me/uploaded"):
    for streaming in (False, True):
        back = datasets.load_dataset(name, split="train", streaming=streaming)
        assert back.features == rows["train"].features
        count = 0
        for ours, theirs in zip(rows["train"], back):
            count += 1
            assert ours["image_id"] == theirs["image_id"]
            assert ours["semantic_classes"] == theirs["semantic_classes"]
            for column in ("image", "semantic", "instance"):
                assert (np.asarray(ours[column]) == np.asarray(theirs[column])).all()
        assert count == len(rows["train"])

# Label again, with the dataset on the hub as the source.
from c2fmae_hf.labelling.labellers.annotations import ColumnsLabeller
from c2fmae_hf.labelling.job import label_images
from c2fmae_hf.labelling.sources.open import open_source
names = rows["train"].features["semantic_classes"].feature.names
for streaming in (False, True):
    labeller = ColumnsLabeller(dict(enumerate(names)))
    source = open_source("me/uploaded", streaming=streaming, columns=labeller.columns)
    assert source.label_feature == rows["train"].features["label"]
    target = f"{folder}-{streaming}"
    assert label_images(source, labeller, target).rows == len(rows["train"])
    again = datasets.load_dataset(target, split="train")
    assert again["image_id"] == rows["train"]["image_id"]
    assert again["label"] == rows["train"]["label"]
# A stream of another commit is another source.
api.upload_file(repo_id="me/uploaded", repo_type="dataset", path_in_repo="note.txt", path_or_fileobj=b"new")
source = open_source("me/uploaded", streaming=True, columns=labeller.columns)
try:
    label_images(source, labeller, f"{folder}-True")
except ValueError as error:
    assert "was made with another source (origin: revision: " in str(error), error
else:
    raise SystemExit("labels of two commits were mixed")
print("published")
"""


def test_a_labelled_dataset_goes_to_a_hub_and_comes_back(hub_scene, tmp_path):
    write_photographs(tmp_path / "photos", 11)
    out: Path = tmp_path / "out"
    label_images(
        FolderSource(tmp_path / "photos", class_folders=True),
        ClassicalLabeller(4, fit_images=5),
        out,
        options=OutputOptions(rows_per_shard=4),
    )
    hub = hub_scene.hub
    done = hub_scene.clients.run(SCRIPT, out, token=TOKENS["writer"])
    assert done.out.strip().endswith("published"), done.err[-3000:]
    assert hub.unknown == []
    uploaded = hub.repositories["datasets/me/uploaded"].files
    assert set(uploaded) >= {"README.md", "manifest.jsonl", "data/train-00002-0000.parquet"}
    assert not any(path.startswith(".labelling") for path in uploaded)
    assert TOKENS["writer"] not in "".join(content.decode("utf-8", "replace") for content in uploaded.values())
