import os

import pytest

from dcal_hf.data.image_files import IMAGE_SUFFIXES, image_files, images_by_name


NAMES = (
    "b/2.png", "b/10.JPG", "b/notes.txt", "b/.3.png", "b/deep/4.webp", "b/.hidden/5.png", "a/6.tiff", "a/.DS_Store",
    "7.png", ".git/8.png",
)


@pytest.fixture
def root(tmp_path):
    for name in NAMES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_equals_os_walk(root):
    expected = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        visible = [name for name in files if not name.startswith(".")]
        images = [name for name in visible if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES]
        expected += [os.path.join(folder, name) for name in images]
    assert sorted(map(str, image_files(root, recursive=True))) == sorted(expected)
    assert image_files(root / "b") == [root / "b" / "10.JPG", root / "b" / "2.png"]


def test_links_to_folders_are_followed_but_not_in_circles(root, tmp_path_factory):
    album = tmp_path_factory.mktemp("album")
    (album / "9.png").touch()
    (album / "first").symlink_to(root)
    (root / "b" / "album").symlink_to(album)
    (root / "b" / "up").symlink_to("..")
    (root / "c.png").mkdir()
    found = [path.relative_to(root).as_posix() for path in image_files(root, recursive=True)]
    assert found == ["7.png", "a/6.tiff", "b/10.JPG", "b/2.png", "b/album/9.png", "b/deep/4.webp"]


def test_one_warning_for_all_folders(root, caplog):
    files = images_by_name([root, root / "b"], "identity", "birds")
    found = [[path.relative_to(root).as_posix() for path in part] for part in files]
    assert found == [["a/6.tiff", "b/10.JPG", "b/2.png"], ["b/deep/4.webp"]]
    (record,) = caplog.records
    first = root / "b" / "deep"
    assert record.message == (
        f"Skipped what is no image in the identity folders of birds: 2 entries, the first is {first}"
    )
