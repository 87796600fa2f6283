"""What importing the package does, and does not."""

from __future__ import annotations

import subprocess
import sys

import c2fmae_hf


SCRIPT = """
import socket, sys

def refuse(*args, **kwargs):
    raise AssertionError("import opened a connection")

socket.socket.connect = refuse
socket.getaddrinfo = refuse
import c2fmae_hf
import timm
from transformers import AutoConfig
assert "c2fmae_vit_base_patch16_224" in timm.list_models()
assert AutoConfig.for_model("c2fmae").hidden_size == 768
print(*sorted({name.split(".")[0] for name in sys.modules} & {"datasets", "evaluate", "matplotlib", "skimage", "ray"}))
"""


def test_import_takes_no_network_and_no_heavy_package():
    result = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []


def test_public_names_exist_and_are_documented():
    for name in c2fmae_hf.__all__:
        value = getattr(c2fmae_hf, name)
        assert isinstance(value, dict) or value.__doc__, name
