from pathlib import Path

from setuptools import find_packages, setup


# The tests pass with all lower bounds and with the newest versions: `.ci/versions` runs both.
INSTALL_REQUIRES = [
    # torch 2.8 cannot compile the object that passes queries and keys between layers.
    "torch>=2.11,<3",
    "torchvision>=0.26,<1",
    # `activation_checkpointing` in training arguments and models.
    "transformers>=5.23,<6",
    "datasets>=4.0,<6",
    "accelerate>=1.10,<2",
    "evaluate>=0.4.6,<0.5",
    # Required by transformers.
    "huggingface_hub>=1.31,<3",
    # Older ones erase the name of the process that holds a lock.
    "filelock>=4.0,<5",
    # All constructor arguments that a checkpoint's configuration may set.
    "timm>=1.0.30,<2",
    # Up to 1.13, results of a search depend on the number of queries in it.
    "faiss-cpu>=1.14.2,<2",
    # AVIF is read from 11.3 on. Pillow 13.0 rejects an image at 0 bits, to which RandAugment of timm 1.0.31 posterizes
    # one in some 500; and gradio 6 excludes it.
    "pillow>=11.3,<13",
    # The pyarrow of datasets does not support NumPy 1.
    "numpy>=2.0,<3",
    "scipy>=1.15.2,<2",
    "pyyaml>=6.0,<7",
    # The model card's template; torch wants it, too.
    "jinja2>=3.1,<4",
]
EXTRAS = {
    # Shapes Arabic and other scripts; reads all fonts of a collection.
    "pictures": ["matplotlib>=3.11,<4"],
    "peft": ["peft>=0.20,<1"],
    # Older ones were not tried.
    "heic": ["pillow-heif>=0.22,<2"],
    # Older ones were not tried; onnxruntime 1.24.1 and onnx 1.20 are what BoxMOT 25 pins.
    "export": ["onnx>=1.20,<2", "onnxruntime>=1.24.1,<2", "onnxscript>=0.7,<1"],
    "demo": ["gradio>=6,<7", "matplotlib>=3.11,<4"],
    "quality": ["flake8>=7,<8", "isort>=6,<9"],
}
EXTRAS["test"] = [
    *EXTRAS["pictures"],
    *EXTRAS["peft"],
    *EXTRAS["heic"],
    *EXTRAS["export"],
    "pytest>=8,<10",
    "pytest-xdist>=3.6.1,<4",
    # Loads image encoders since 5.4.
    "sentence-transformers>=5.4,<7",
]
EXTRAS["dev"] = EXTRAS["test"] + EXTRAS["quality"]

version = {}
exec(Path("dcal_hf/version.py").read_text(encoding="utf-8"), version)

setup(
    name="dcal_hf",
    version=version["__version__"],
    description="Dual Cross-Attention Learning for any Vision Transformer in the Hugging Face stack",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    # As in transformers.
    python_requires=">=3.11",
    # The recipes, for `dcal`. Not in dcal_hf: its import takes seconds, and `dcal --help` needs nothing of it.
    packages=[*find_packages(include=["dcal_hf", "dcal_hf.*"]), "dcal_recipes"],
    package_dir={"dcal_recipes": "recipes"},
    package_data={
        "dcal_hf": ["py.typed", "model_card_template.md"],
        "dcal_recipes": ["configs/*.yaml", "configs/base/*.yaml", "ablations/*.yaml"],
    },
    entry_points={"console_scripts": ["dcal = dcal_recipes.cli:main"]},
    zip_safe=False,
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS,
    keywords="fine-grained classification, re-identification, vision transformer, attention",
    classifiers=[
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
