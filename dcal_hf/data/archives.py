"""Unpacks data sets that are archives, once, into the cache of `datasets`."""

import errno
import hashlib
import logging
import os
import shutil
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import datasets
from huggingface_hub.utils import WeakFileLock

from ..errors import reason_of
from .image_files import PARTS, visible


logger = logging.getLogger(__name__)

ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".zip")
# Default limit of the unpacked size: photographs hardly compress, but lists and padding do.
FREE_BYTES, FREE_RATIO = 100 << 20, 100
# Also a quota, and files larger than a file system or a process may have.
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class _TooLarge(Exception):
    """The archive exceeds the limit of unpacked bytes."""


def data_folder(
    path: Path, cache_dir: str | Path | None = None, max_unpacked_bytes: int | None = None
) -> Path:
    """Returns a folder, or the folder that an archive is unpacked to.

    An archive is unpacked on first use, into the folder `extracted` of the cache, and again if its size or
    modification time changes. The unpacked folder appears only once complete. If the archive contains a single folder,
    that folder is returned, unless it is named like a split.

    Args:
        path (`Path`): An existing folder, or a file that ends in .tar, .tar.gz, .tgz or .zip.
        cache_dir (`str` or `Path`, *optional*): The cache, by default that of `datasets` (`HF_DATASETS_CACHE`).
        max_unpacked_bytes (`int`, *optional*): Limit of the unpacked size; by default 100 times the archive's size,
            and at least 100 MiB.

    Returns:
        `Path`: an absolute path, since galleries with the paths of their images are used in other working directories.

    Raises:
        FileNotFoundError: if the path does not exist.
        ValueError: if the file is not such an archive, is damaged, exceeds the limit, or has members that would be
            extracted to or point outside the folder. Nothing is kept of a rejected archive.
    """
    if path.is_dir():
        return path.absolute()
    if not path.exists():
        raise FileNotFoundError(f"the folder {path} does not exist; check data_dir")
    if not path.name.lower().endswith(ARCHIVE_SUFFIXES):
        raise ValueError(
            f"{path} is neither a folder nor an archive that can be unpacked ({', '.join(ARCHIVE_SUFFIXES)}); give "
            "the folder or such an archive"
        )
    folder = _unpacked(path.resolve(), cache_dir, max_unpacked_bytes)
    entries = visible(folder)
    nested = len(entries) == 1 and entries[0].is_dir() and entries[0].name.lower() not in PARTS
    return entries[0] if nested else folder


def _unpacked(archive: Path, cache_dir: str | Path | None, max_bytes: int | None) -> Path:
    """The folder of an archive in the cache; unpacks it if needed.

    The extraction of `datasets` is not used: it identifies archives by path only, treats the leftovers of a killed
    process as complete, and skips unsafe members instead of rejecting the archive.
    """
    cache = datasets.config.EXTRACTED_DATASETS_PATH
    if cache_dir is not None:
        cache = Path(cache_dir).expanduser() / datasets.config.EXTRACTED_DATASETS_DIR
    status = archive.stat()
    digest = hashlib.sha256(f"{archive}\n{status.st_size}\n{status.st_mtime_ns}".encode()).hexdigest()[:16]
    folder = Path(cache, f"{archive.name.split('.')[0]}-{digest}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(f"{folder}.lock"):
        if not folder.is_dir():
            logger.info("Unpacking %s into %s", archive, folder)
            incomplete = Path(f"{folder}.incomplete")
            shutil.rmtree(incomplete, ignore_errors=True)
            incomplete.mkdir()
            try:
                _unpack(archive, incomplete, max_bytes or max(FREE_RATIO * status.st_size, FREE_BYTES))
                os.rename(incomplete, folder)
            finally:
                shutil.rmtree(incomplete, ignore_errors=True)
    return folder


def _unpack(archive: Path, folder: Path, max_bytes: int) -> None:
    unpack = _unpack_zip if archive.suffix.lower() == ".zip" else _unpack_tar
    try:
        outside = unpack(archive, folder, max_bytes)
    except _TooLarge as error:
        raise ValueError(
            f"the archive {archive} holds more than {max_bytes:,} bytes; if you trust it, raise max_unpacked_bytes, "
            "or unpack it by other means and give the folder"
        ) from error
    except Exception as error:
        # What tarfile and zipfile raise on damaged, encrypted and unusual archives has no common base class.
        if isinstance(error, OSError) and error.errno in _FULL_DISK:
            raise
        raise ValueError(
            f"the archive {archive} cannot be unpacked ({reason_of(error)}): it is damaged, encrypted or in another "
            "format than its name says; download it again, or unpack it by other means and give the folder"
        ) from error
    if outside is not None:
        raise ValueError(
            f"the archive {archive} holds {outside!r}, which would be outside the folder that it is unpacked to, or "
            "point outside it; get the archive from a source that you trust"
        )


def _unpack_tar(archive: Path, folder: Path, max_bytes: int) -> str | None:
    """Unpacks a tar archive; stops at a member outside the folder and returns its name."""
    unpacked = 0

    def check(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo:
        nonlocal unpacked
        # With its header, because millions of empty members compress to a few megabytes.
        unpacked += tarfile.BLOCKSIZE + member.size
        if unpacked > max_bytes:
            raise _TooLarge
        return _inside(member, folder)

    with tarfile.open(archive) as file:
        try:
            file.extractall(folder, filter=check)
        except tarfile.FilterError as error:
            return error.tarinfo.name
        # tarfile stops before the checksum at the end of a .gz; reading to the end verifies it.
        while rest := file.fileobj.read(1 << 20):
            unpacked += len(rest)
            if unpacked > max_bytes:
                raise _TooLarge
    return None


def _inside(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo:
    if PurePosixPath(member.name).is_absolute():
        raise tarfile.AbsolutePathError(member)
    return tarfile.data_filter(member, folder)


def _unpack_zip(archive: Path, folder: Path, max_bytes: int) -> str | None:
    """Unpacks a zip archive, or returns the name of a member outside the folder. Links become regular files."""
    with zipfile.ZipFile(archive) as file:
        # macOS adds this folder with file attributes.
        names = [name for name in file.namelist() if not name.startswith("__MACOSX/")]
        for name in names:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts:
                return name
        # zipfile never unpacks more of a member than its header declares.
        if sum(file.getinfo(name).file_size for name in names) > max_bytes:
            raise _TooLarge
        file.extractall(folder, names)
    return None


__all__ = ["ARCHIVE_SUFFIXES", "data_folder"]
