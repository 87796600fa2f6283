"""Package metadata. Settings of the developer tools are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup


HERE = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "src/c2fmae_hf/__init__.py").read_text(), re.MULTILINE).group(1)

INSTALL_REQUIRES = [
    "torch>=2.11",
    "torchvision>=0.26",
    "transformers>=5.17",
    "timm>=1.0.20",
    "huggingface-hub>=1.33",
    "safetensors>=0.8",
    "datasets>=5.1",  # before, streams do not always resume where they stopped
    "evaluate>=0.4.5",
    "accelerate>=1.5",
    "numpy>=2.0",
    "pillow>=11.3",  # AVIF
    "pyyaml>=6",
    "jinja2>=3.1",  # model cards
]

EXTRAS_REQUIRE = {
    # figures: reconstruction.png, curves.png, contact_sheet.png
    "viz": ["matplotlib>=3.9"],
    # label_images.py and validate_dataset.py; also `make demo`, whose photographs ship with the first two
    "label": [
        "scikit-image>=0.25",
        "scikit-learn>=1.5",
        "threadpoolctl>=3.1",
        "pycocotools>=2.0.8",
        "filelock>=3.13",
        "pyarrow>=17",
        "tqdm>=4.66",
        "matplotlib>=3.9",
    ],
    # run_object_detection.py; `evaluate.evaluator`
    "detection": ["pycocotools>=2.0.8", "scipy>=1.13"],
    # ONNX: written, checked, and verified against the model
    "export": ["onnx>=1.17", "onnxscript>=0.6", "onnxruntime>=1.20"],
    # examples/app; Gradio 6 holds Pillow below 13
    "app": ["gradio>=6.31", "matplotlib>=3.9", "scikit-image>=0.25", "scikit-learn>=1.5"],
    # labelling on a cluster
    "ray": ["ray[data]>=2.44"],
    # `make docs`
    "docs": ["sphinx>=8.1", "furo>=2024.8.6", "myst-parser>=4.0"],
    "pytest": ["pytest>=8", "hypothesis>=6.100", "parameterized>=0.9", "torchmetrics>=1.6"],
    "quality": ["ruff>=0.14", "mypy>=1.18", "types-PyYAML", "pip-audit>=2.7"],
}
EXTRAS_REQUIRE["test"] = [
    *(package for extra in ("label", "detection", "export", "ray") for package in EXTRAS_REQUIRE[extra]),
    *EXTRAS_REQUIRE.pop("pytest"),
]
# Its page in a browser, which is the system's Chromium
EXTRAS_REQUIRE["app-test"] = [*EXTRAS_REQUIRE["app"], "playwright>=1.55"]
EXTRAS_REQUIRE["dev"] = [*EXTRAS_REQUIRE["test"], *EXTRAS_REQUIRE["quality"]]

setup(
    name="c2fmae-hf",
    version=VERSION,
    description="C2FMAE, a coarse-to-fine masked autoencoder, for transformers and timm",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    keywords="vision pre-training masked-autoencoder self-supervised transformers timm",
    package_dir={"": "src"},
    packages=find_packages("src"),
    package_data={"c2fmae_hf": ["py.typed", "publishing/*.md", "pictures/*.html", "labelling/*.md"]},
    python_requires=">=3.10",
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
