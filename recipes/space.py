"""Writes the folder of a Hugging Face Space: the page, the code that it needs, the checkpoint and the gallery."""

import dataclasses
import os
import shlex
import shutil
import sys
from importlib.metadata import requires, version
from io import BytesIO
from itertools import repeat
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml
from datasets import Dataset, Features, Value
from demo_app import Demo
from loading import PROCESSOR_FILE
from packaging.requirements import Requirement
from registration import with_neighbours
from temperature import TEMPERATURE_FILE
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

import dcal_hf
from dcal_hf.data import open_image
from dcal_hf.models.loading_dcal import read_index
from dcal_hf.retrieval import VERIFICATION_FILE, GalleryIndex


THUMBNAIL_PIXELS = 512
NO_CACHES = shutil.ignore_patterns("__pycache__")
APP = '''"""Written by `dcal demo --export_space`."""

import sys
from pathlib import Path


HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE / "recipes")]

from arguments import HubArguments  # noqa: E402
from demo_app import CSS, load_demo, page  # noqa: E402


{registrations}demo = page(load_demo(HubArguments({model}), {gallery}, {title!r}, calibrated={calibrated}))

if __name__ == "__main__":
    demo.launch(css=CSS)
'''


def write_space(demo: Demo, folder: str | os.PathLike) -> str:
    """Writes the folder, which appears only when it is complete, and returns what to do with it.

    A checkpoint on the Hub is loaded from there by the Space; one in a folder is copied. Images of a gallery are
    copied as thumbnails.

    Raises:
        FileExistsError: If the folder exists and is not empty.
    """
    folder = Path(folder).resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not empty: choose another folder for the Space.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        new = Path(temporary, "space")
        write_files(demo, new)
        if folder.exists():
            folder.rmdir()
        os.rename(new, folder)
    images = "" if demo.gallery is None else " Everybody who sees the Space sees the images of the gallery."
    upload = shlex.join(["hf", "upload", "USER/NAME", str(folder), ".", "--repo-type=space"])
    return (
        f"{folder} is a Space.{images} Try it: python {shlex.quote(str(folder / 'app.py'))}\nCreate an empty one of "
        f"gradio at https://huggingface.co/new-space, and upload it: {upload}"
    )


def write_files(demo: Demo, folder: Path) -> None:
    shutil.copytree(Path(dcal_hf.__file__).parent, folder / "dcal_hf", ignore=NO_CACHES)
    (folder / "recipes").mkdir()
    for script in Path(__file__).parent.glob("*.py"):
        shutil.copy(script, folder / "recipes")
    source, gallery = Path(demo.args.model_name_or_path), None
    if source.is_dir():
        model = 'str(HERE / "model")'
        (folder / "model").mkdir()
        for name in checkpoint_files(demo, source):
            shutil.copy(source / name, folder / "model")
    else:
        model = f"{demo.args.model_name_or_path!r}, model_revision={demo.args.model_revision!r}"
    if demo.gallery is not None:
        gallery = 'HERE / "gallery"'
        with_thumbnails(demo.gallery, demo.args.max_pixels).save(folder / "gallery")
    facts = {"gallery": gallery, "title": demo.title, "calibrated": demo.temperature != 1}
    app = APP.format(model=model, registrations=copy_registrations(demo.args.register, folder), **facts)
    (folder / "app.py").write_text(app, encoding="utf-8")
    (folder / "requirements.txt").write_text("\n".join(requirements()) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(readme(demo, source.is_dir()), encoding="utf-8")


def copy_registrations(register: str | None, folder: Path) -> str:
    """Copies the file of `--register`, if it is given, with what it imports from its folder, and returns the code that
    runs the copy."""
    if register is None:
        return ""
    copies, name = folder / "registrations", Path(register).name
    copies.mkdir()
    for path in with_neighbours(Path(register)):
        if path.is_dir():
            shutil.copytree(path, copies / path.name, ignore=NO_CACHES)
        else:
            shutil.copy(path, copies)
    return f'from registration import register_from\n\nregister_from(HERE / "registrations" / {name!r})\n'


def checkpoint_files(demo: Demo, folder: Path) -> list[str]:
    """The files of a checkpoint that the demo has read. Others are not published."""
    shards = read_index(str(folder))
    weights = [SAFE_WEIGHTS_INDEX_NAME, *shards] if shards else [SAFE_WEIGHTS_NAME]
    names = ["config.json", PROCESSOR_FILE, *weights]
    names += [TEMPERATURE_FILE] if demo.temperature != 1 else []
    return names + ([VERIFICATION_FILE] if demo.threshold is not None else [])


def with_thumbnails(gallery: GalleryIndex, max_pixels: int) -> GalleryIndex:
    """The gallery with small copies of its images in place of their paths, and the names of their files and model.

    Of an image with a bbox, the copy is this part of it.
    """

    def shrink(image: dict | str, box: list[float] | None) -> dict[str, bytes | str]:
        path = image["path"] if isinstance(image, dict) else image
        picture, content = open_image(image, max_pixels, box), BytesIO()
        picture.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
        picture.save(content, "JPEG", quality=85)
        return {"bytes": content.getvalue(), "path": Path(path or "").name}

    # Not `map`, which would write its cache into the folder of the gallery.
    columns = {name: gallery.items[name][:] for name in gallery.items.column_names}
    columns["image"] = list(map(shrink, columns["image"], columns.pop("bbox", repeat(None))))
    features = gallery.items.features | {"image": {"bytes": Value("binary"), "path": Value("string")}}
    items = Dataset.from_dict(columns, features=Features({name: features[name] for name in columns}))
    return dataclasses.replace(gallery, items=items, model_name=gallery.model_name and Path(gallery.model_name).name)


def requirements() -> list[str]:
    """What dcal_hf and the demo require, for requirements.txt."""
    needed = []
    for requirement in map(Requirement, requires("dcal_hf")):
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": x}) for x in ("pictures", "demo")):
            needed.append(f"{requirement.name}{requirement.specifier}")
    return sorted(set(needed))


def readme(demo: Demo, is_copied: bool) -> str:
    """The README.md of the Space, whose header says how to run it."""
    header = {
        "title": demo.title,
        "sdk": "gradio",
        "sdk_version": version("gradio"),
        "python_version": f"{sys.version_info.major}.{sys.version_info.minor}",
        "app_file": "app.py",
        "tags": ["dcal"],
        **({} if is_copied else {"models": [demo.args.model_name_or_path]}),
    }
    text = (
        "Dual Cross-Attention Learning ([DCAL](https://huggingface.co/papers/2205.02151)). `app.py` starts the page; "
        "`dcal_hf` and `recipes` are the code that it needs."
    )
    return f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---\n\n# {demo.title}\n\n{text}\n"
