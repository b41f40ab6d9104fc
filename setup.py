from pathlib import Path

from setuptools import find_packages, setup


INSTALL_REQUIRES = [
    "torch>=2.8,<3",
    "torchvision>=0.23,<1",
    "transformers>=5.20,<6",
    "datasets>=4.0,<6",
    "accelerate>=1.10,<2",
    "evaluate>=0.4.6,<0.5",
    "huggingface_hub>=1.0,<3",
    "timm>=1.0.20,<2",
    "faiss-cpu>=1.9,<2",
    # timm's RandAugment posterizes down to 0 bits, which Pillow 13 refuses.
    "pillow>=10.1,<13",
    "numpy>=1.26,<3",
    "scipy>=1.11,<2",
    "pyyaml>=6.0,<7",
]
EXTRAS = {
    "pictures": ["matplotlib>=3.8,<4"],
    "peft": ["peft>=0.20,<1"],
    "quality": ["flake8>=7,<8", "isort>=6,<9"],
}
EXTRAS["test"] = EXTRAS["pictures"] + EXTRAS["peft"] + ["pytest>=8,<10"]
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
    python_requires=">=3.10",
    packages=find_packages(include=["dcal_hf", "dcal_hf.*"]),
    package_data={"dcal_hf": ["py.typed"]},
    zip_safe=False,
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS,
    keywords="fine-grained classification, re-identification, vision transformer, attention",
    classifiers=[
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
