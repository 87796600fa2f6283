"""Fixtures: a tiny model, and photographs with maps that need nothing outside this repository."""

from __future__ import annotations

import os


# Before any import that reads them: no test may look for a hub, and small models run fastest on few threads.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import gc
import sysconfig
import venv
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest


# Fixtures import the libraries, which takes seconds: of several processes, the one that runs no tests does without.
if TYPE_CHECKING:
    import datasets
    import torch

    from c2fmae_hf import C2FMAEConfig, C2FMAEForPreTraining
    from c2fmae_hf.data.dataset import C2FMAEDataset
    from hub_clients import Clients
    from hub_faults import Scene


REPOSITORY = Path(__file__).resolve().parents[1]
SHARED_DATA = REPOSITORY.parent / "shared" / "data"


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, Any, Any]:
    """Keep the garbage collector away from the million objects that imports create and that stay alive."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(autouse=True)
def seeded() -> None:
    import numpy as np
    import torch

    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002  what libraries use


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real photographs with annotated masks, which are not part of this repository."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"needs the image data in {SHARED_DATA.relative_to(REPOSITORY.parent)} beside the checkout")
    return SHARED_DATA


@pytest.fixture
def config() -> C2FMAEConfig:
    from c2fmae_hf import C2FMAEConfig

    return C2FMAEConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        label_stride=4,
        decoder_hidden_size=32,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=4,
        decoder_intermediate_size=64,
        num_semantic_classes=5,
        decoder_prediction_ratio=1.0,  # without chance, so that runs compare
        segmentation_head_channels=16,
    )


@pytest.fixture
def model(config: C2FMAEConfig) -> C2FMAEForPreTraining:
    from c2fmae_hf import C2FMAEForPreTraining

    return C2FMAEForPreTraining(config)


@pytest.fixture
def rows() -> datasets.Dataset:
    from testing_utils import make_rows

    return make_rows(12)


@pytest.fixture
def dataset(config: C2FMAEConfig, rows: datasets.Dataset) -> C2FMAEDataset:
    from c2fmae_hf.data.dataset import C2FMAEDataset
    from c2fmae_hf.data.progress import SharedProgress
    from c2fmae_hf.data.transforms import training_transform

    transform = training_transform(config.image_height_width, label_stride=config.label_stride)
    return C2FMAEDataset(rows, transform, num_semantic_classes=5, progress=SharedProgress())


@pytest.fixture
def batch(config: C2FMAEConfig, dataset: C2FMAEDataset) -> dict[str, torch.Tensor]:
    from c2fmae_hf.data.data_collator import DataCollatorForC2FMAE

    return DataCollatorForC2FMAE(config)([dataset[i] for i in range(8)])


@pytest.fixture(scope="session")
def python_without_package(tmp_path_factory) -> str:
    """An interpreter with this one's libraries but without c2fmae_hf, whose path is in a `.pth` file."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=False, symlinks=True)
    site = next(folder.glob("lib*/python*/site-packages"), folder / "Lib/site-packages")
    (site / "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return str(next(path for path in (folder / "bin/python", folder / "Scripts/python.exe") if path.exists()))


@pytest.fixture(scope="session")
def hub_scene(tmp_path_factory) -> Iterator[Scene]:
    """A Hub on loopback, with processes that use it."""
    from hub_faults import Scene

    scene = Scene(tmp_path_factory.mktemp("hub"))
    yield scene
    scene.close()


@pytest.fixture(scope="session")
def processes(tmp_path_factory) -> Iterator[Clients]:
    """Each run is a process of its own; the libraries are imported once. No Hub is there, and none is asked."""
    from hub_clients import Clients

    started = Clients("http://127.0.0.1:9", tmp_path_factory.mktemp("home"))
    yield started
    started.close()
