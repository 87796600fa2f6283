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
    "datasets>=4.0",
    "evaluate>=0.4.5",
    "accelerate>=1.5",
    "numpy>=1.26",
    "pillow>=11",
    "pyyaml>=6",
]

EXTRAS_REQUIRE = {
    # figures: reconstruction.png, curves.png
    "viz": ["matplotlib>=3.9"],
    # the embedded photographs of `make demo` and their classical segmentation
    "demo": ["matplotlib>=3.9", "scikit-image>=0.24", "scikit-learn>=1.5"],
    # the tests train on the demo's data and draw its figures
    "test": ["matplotlib>=3.9", "scikit-image>=0.24", "scikit-learn>=1.5", "pytest>=8", "parameterized>=0.9"],
    "quality": ["ruff>=0.14", "mypy>=1.18", "types-PyYAML"],
}
EXTRAS_REQUIRE["dev"] = sorted({requirement for extra in ("test", "quality") for requirement in EXTRAS_REQUIRE[extra]})

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
    package_data={"c2fmae_hf": ["py.typed"]},
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
