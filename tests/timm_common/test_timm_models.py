"""
timm's `tests/test_models.py` on the encoders that `c2fmae_hf` registers.

    python -m pytest tests/timm_common -q

timm's tests take their models from `list_models`, with filters by name and module that its own vision transformers
pass. While its module is imported, `list_models` lists ours wherever timm's model of the same architecture would be
listed. Tests that name other architectures themselves are left out.

ViT-Huge takes 9 GiB of memory. C2FMAE_TEST_SLOWEST=1 runs the one test that is skipped for taking too long.
"""

from __future__ import annotations

import os

import pytest
import timm
import timm.models
from safetensors.torch import save_file
from timm.models._registry import _model_pretrained_cfgs

import c2fmae_hf
import source_distributions


pytestmark = [
    pytest.mark.slow,
    # What timm's tests use may be deprecated (TorchScript); that is timm's to mend.
    pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning"),
]

PREFIX = "c2fmae_"
OURS = timm.list_models(f"{PREFIX}*")


class Ours(list):
    """Names of models of ours, known from a list of names that a test wrote down."""


def list_ours(*args, **kwargs) -> Ours:
    twins = {name.split(".")[0] for name in list_all(*args, **kwargs)}
    return Ours(name for name in OURS if name.removeprefix(PREFIX) in twins)


list_all = timm.list_models
with pytest.MonkeyPatch.context() as patch:
    patch.delenv("GITHUB_ACTIONS", raising=False)  # timm lists fewer models there
    patch.setattr(timm, "list_models", list_ours)
    patch.setattr(timm, "list_pretrained", lambda *args, **kwargs: Ours())  # of tests of published weights
    upstream = source_distributions.load("timm", "test_models")

cfg_device = upstream.cfg_device  # a fixture


def listed_models(test) -> list[str]:
    """Those that timm's parametrization of the test lists; none where the test is for other architectures."""
    for mark in getattr(test, "pytestmark", ()):
        if mark.name == "parametrize" and isinstance(mark.args[1], Ours):
            return mark.args[1]
    return []


TESTS = {name: value for name, value in vars(upstream).items() if name.startswith("test_") and callable(value)}
APPLICABLE = {name: test for name, test in TESTS.items() if listed_models(test)}
globals().update(APPLICABLE)


@pytest.fixture(autouse=True)
def not_the_slowest(request):
    is_slowest = "prune_intermediate" in request.node.name and "_large_" in request.node.name
    if is_slowest and not os.environ.get("C2FMAE_TEST_SLOWEST"):
        pytest.skip("takes ten minutes on a CPU; C2FMAE_TEST_SLOWEST=1 runs it")


@pytest.fixture(autouse=True)
def weights(request, monkeypatch, tmp_path):
    """No weights of these are published: a test that loads some gets a file of the encoder's, with random values."""
    if "pretrained" not in request.node.name:
        yield
        return
    name = request.node.callspec.params["model_name"]
    size = next(size for size in c2fmae_hf.SIZES if f"_vit_{size}_" in name)
    encoder = c2fmae_hf.C2FMAEModel(c2fmae_hf.C2FMAEConfig.from_size(size))
    save_file(encoder.state_dict(), tmp_path / "model.safetensors")
    monkeypatch.setattr(_model_pretrained_cfgs[name], "file", str(tmp_path / "model.safetensors"))
    yield
    (tmp_path / "model.safetensors").unlink()


def test_every_size_is_tested():
    assert len(OURS) == len(c2fmae_hf.SIZES)
    assert set(OURS) == {name for test in APPLICABLE.values() for name in listed_models(test)}
