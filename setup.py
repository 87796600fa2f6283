"""Package metadata. Settings of the developer tools are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup


HERE = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "src/c2fmae_hf/__init__.py").read_text(), re.MULTILINE).group(1)
REPOSITORY = "https://github.com/c2fmae-hf/c2fmae-hf"

# Load, fine-tune, pre-train.
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
    "pyarrow>=17",
    "tqdm>=4.66",
    "filelock>=3.13",
]

LABELLING = ["scikit-image>=0.25", "scikit-learn>=1.5", "threadpoolctl>=3.1"]
PICTURES = ["matplotlib>=3.9"]
DETECTION = ["pycocotools>=2.0.8", "scipy>=1.13"]
EXPORT = ["onnx>=1.17", "onnxscript>=0.6", "onnxruntime>=1.20"]

EXTRAS_REQUIRE = {
    # every command but `c2fmae app`; the demonstration's photographs ship with scikit-image and scikit-learn
    "all": [*LABELLING, *PICTURES, *DETECTION, *EXPORT],
    # `c2fmae app`; Gradio 6 holds Pillow below 13
    "app": ["gradio>=6.31", *PICTURES, *LABELLING],
    # labelling on a cluster
    "ray": ["ray[data]>=2.44"],
}
EXTRAS_REQUIRE["dev"] = [
    *EXTRAS_REQUIRE["all"],
    *EXTRAS_REQUIRE["ray"],
    *("pytest>=8", "pytest-xdist>=3.8", "hypothesis>=6.100", "parameterized>=0.9", "torchmetrics>=1.6"),
    *("ruff>=0.14", "mypy>=1.18", "types-PyYAML", "pip-audit>=2.7"),
    *("sphinx>=8.1", "furo>=2024.8.6", "myst-parser>=4.0"),
]


def long_description() -> str:
    """README with addresses instead of paths, for a page outside the repository."""
    text = (HERE / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"(!\[[^\]]*\]\()(?!https?://)([^)]+)\)", rf"\1{REPOSITORY}/raw/main/\2)", text)
    return re.sub(r"((?<!!)\[[^\]]*\]\()(?!https?://|#)([^)]+)\)", rf"\1{REPOSITORY}/blob/main/\2)", text)


setup(
    name="c2fmae-hf",
    version=VERSION,
    description="C2FMAE, a coarse-to-fine masked autoencoder, for transformers and timm",
    long_description=long_description(),
    long_description_content_type="text/markdown",
    author="The c2fmae-hf authors",
    url=REPOSITORY,
    project_urls={
        "Documentation": f"{REPOSITORY}/blob/main/docs/index.md",
        "Changelog": f"{REPOSITORY}/blob/main/CHANGELOG.md",
        "Issues": f"{REPOSITORY}/issues",
        "Paper": "https://arxiv.org/abs/2603.09955",
    },
    license="Apache-2.0",
    keywords="vision pre-training masked-autoencoder self-supervised transformers timm",
    package_dir={"": "src"},
    packages=find_packages("src"),
    package_data={
        "c2fmae_hf": ["py.typed", "recipes/*/*.yaml", "publishing/*.md", "pictures/*.html", "labelling/*.md"]
    },
    entry_points={"console_scripts": ["c2fmae = c2fmae_hf.commands.main:main"]},
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
