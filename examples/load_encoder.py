"""
Load a saved encoder with transformers and with timm, and compare their features of a photograph.

    python examples/load_encoder.py runs/demo/c2fmae-vit-tiny
    python examples/load_encoder.py runs/demo/c2fmae-vit-tiny --image photo.jpg

timm loads it in a process of its own that never imports this package: the folder's `config.json` holds timm's keys.
timm 1.0.26 is the first whose `local-dir:` reads safetensors. Takes a few seconds; measured difference on CPU: 0.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModel

import c2fmae_hf


WITHOUT_THIS_PACKAGE = """
import sys, timm, torch
from safetensors.torch import load_file, save_file
folder, inputs, outputs = sys.argv[1:]
model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
with torch.no_grad():
    save_file({"features": model.forward_features(load_file(inputs)["pixel_values"])}, outputs)
assert "c2fmae_hf" not in sys.modules
"""


def main(args: list[str] | None = None) -> float:
    """Returns the largest difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="folder of a saved encoder")
    parser.add_argument("--image", help="photograph; by default one of scikit-image's")
    options = parser.parse_args(args)
    if options.image is None:
        from skimage import data

        image = Image.fromarray(data.chelsea())
    else:
        image = Image.open(options.image)

    processor = AutoImageProcessor.from_pretrained(options.folder)
    pixel_values = processor(image, return_tensors="pt")["pixel_values"]
    model = AutoModel.from_pretrained(options.folder).eval()
    size = c2fmae_hf.C2FMAEConfig.from_pretrained(options.folder)
    name = f"c2fmae_{size.timm_keys()['architecture']}"
    registered = timm.create_model(
        name,
        pretrained=True,
        num_classes=0,
        img_size=size.image_height_width,
        pretrained_cfg_overlay={"file": str(Path(options.folder) / "model.safetensors")},
    ).eval()
    with torch.no_grad():
        expected = model(pixel_values).last_hidden_state
        features = {f'timm.create_model("{name}")': registered.forward_features(pixel_values)}
    with tempfile.TemporaryDirectory() as folder:
        inputs, outputs = (str(Path(folder) / name) for name in ("inputs.safetensors", "outputs.safetensors"))
        save_file({"pixel_values": pixel_values.contiguous()}, inputs)
        subprocess.run([sys.executable, "-c", WITHOUT_THIS_PACKAGE, options.folder, inputs, outputs], check=True)
        features['timm.create_model("local-dir:...") without c2fmae_hf'] = load_file(outputs)["features"]

    largest = 0.0
    print(f"AutoModel: features {tuple(expected.shape)}, mean {expected.mean():.4f}, std {expected.std():.4f}")
    for name, values in features.items():
        difference = (values - expected).abs().max().item()
        largest = max(largest, difference)
        print(f"{name}: largest difference {difference:.1e}")
    if largest > 1e-5:
        raise SystemExit(f"expected the same features to 1e-5, got a difference of {largest:.1e}")
    return largest


if __name__ == "__main__":
    main()
