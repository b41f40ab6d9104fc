"""A disk that fills up: the error tells it, nothing half-written counts, and what was there before stays."""

import os
import resource
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

import pytest
from safetensors import SafetensorError

from dcal_hf import DCALTrainer
from dcal_hf.data.archives import data_folder
from dcal_hf.files import write_atomically
from dcal_hf.retrieval import GalleryIndex
from dcal_hf.training import last_checkpoint

from distributed_worker import make_trainer
from galleries import make, visible
from helpers import assert_same_weights, train_until_killed


# Of the system; of torch and safetensors, which do not always tell it.
FULL = "No space left on device|File too large|unexpected pos|file write failed"
LARGE = 100_000_000


@contextmanager
def short_files(size: int) -> Iterator[None]:
    """Lets no file grow beyond half of a size, so that one of several files that need more in all fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def little_left(folder: Path, size: int) -> Iterator[None]:
    """Makes a disk in memory so small that some bytes are left."""
    status = os.statvfs(folder)
    used = (status.f_blocks - status.f_bfree) * status.f_frsize
    subprocess.run(["mount", "-o", f"remount,size={used + size}", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", f"remount,size={LARGE}", folder], check=True)


@pytest.fixture
def disk(tmp_path) -> Iterator[tuple[Path, Callable[[int], AbstractContextManager]]]:
    """A folder, and what leaves few bytes in it: a disk in memory, or a limit of files where none may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={LARGE}", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        yield folder, short_files
        return
    yield folder, partial(little_left, folder)
    subprocess.run(["umount", folder], check=True)


def saving_trainer(folder: Path, **options) -> DCALTrainer:
    return make_trainer(str(folder), save_strategy="steps", save_steps=1, max_steps=6, **options)


@pytest.mark.slow
@pytest.mark.parametrize("size", [8_192, 40_960, 65_536, 131_072, 196_608])
def test_a_run_resumes_after_a_full_disk(tmp_path, disk, size, tell):
    """The second checkpoint finds so much space: for none of its files, or for some."""
    folder, full = disk
    train_until_killed(saving_trainer(folder / "run"), 2)
    whole = saving_trainer(tmp_path / "whole")
    whole.train()
    with full(size), pytest.raises((OSError, RuntimeError, SafetensorError), match=FULL):
        saving_trainer(folder / "run").train(resume_from_checkpoint=True)
    kept = Path(last_checkpoint(folder / "run")).name
    again = saving_trainer(folder / "run")
    again.train(resume_from_checkpoint=True)
    assert_same_weights(whole.model.state_dict(), again.model.state_dict())
    tell("full disk while a checkpoint is saved", f"{size:,} bytes left", f"goes on from {kept}, equal weights")


@pytest.mark.slow
def test_a_gallery_outlives_a_full_disk(disk, tell):
    folder, full = disk
    make(count=20).save(folder / "gallery")
    for size in (0, 4_096, 16_384, 40_960):
        with full(size), pytest.raises((OSError, RuntimeError)):
            make(count=2_000).save(folder / "gallery")
        assert len(GalleryIndex.load(folder / "gallery")) == 20 and visible(folder) == ["gallery"]
    tell("full disk while a gallery is replaced", "0 to 40,960 bytes left", "the former gallery loads, no leftovers")


@pytest.mark.slow
def test_an_archive_and_a_table_leave_nothing_on_a_full_disk(tmp_path, disk, tell):
    folder, full = disk
    (tmp_path / "owl.png").write_bytes(bytes(50_000))
    with tarfile.open(tmp_path / "birds.tar", "w") as file:
        file.add(tmp_path / "owl.png", "owl/1.png")
    write_atomically(folder / "table.csv", "whole")
    with full(8_192):
        with pytest.raises(OSError, match=FULL):
            data_folder(tmp_path / "birds.tar", cache_dir=folder)
        with pytest.raises(OSError, match=FULL):
            write_atomically(folder / "table.csv", "x" * 50_000)
    assert (folder / "table.csv").read_text() == "whole"
    assert sorted(path.name for path in folder.iterdir()) == ["extracted", "table.csv"]
    assert [path.suffix for path in (folder / "extracted").iterdir()] == [".lock"]
    assert (data_folder(tmp_path / "birds.tar", cache_dir=folder) / "1.png").stat().st_size == 50_000
    tell("full disk while an archive is unpacked, a table written", "8,192 bytes left", "told, nothing half-written")
