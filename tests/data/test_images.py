from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from dcal_hf.data import open_image


@pytest.fixture
def photo():
    pixels = np.random.default_rng(0).integers(0, 256, size=(20, 30, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def photo_path(photo, tmp_path):
    path = tmp_path / "photo.png"
    photo.save(path)
    return path


def test_every_form_of_an_image_reads_the_same(photo, photo_path):
    in_memory = {"path": None, "bytes": photo_path.read_bytes()}
    by_path = {"path": str(photo_path), "bytes": None}
    for image in (photo, photo_path, str(photo_path), in_memory, by_path):
        opened = open_image(image)
        assert opened.mode == "RGB"
        assert np.array_equal(opened, photo)


def test_bytes_win_over_a_path_that_is_only_a_name(photo, photo_path):
    assert np.array_equal(open_image({"path": "elsewhere.png", "bytes": photo_path.read_bytes()}), photo)


def test_exif_orientation_is_applied(tmp_path):
    left_red = Image.fromarray(np.array([[[255, 0, 0]] * 8 + [[0, 0, 255]] * 8] * 4, dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    left_red.save(tmp_path / "turned.png", exif=exif)
    opened = np.asarray(open_image(tmp_path / "turned.png"))
    assert opened.shape == (16, 4, 3)
    assert opened[0, 0].tolist() == [255, 0, 0]
    assert opened[-1, 0].tolist() == [0, 0, 255]


@pytest.mark.parametrize("mode, color, expected", [
    ("L", 77, [77, 77, 77]),
    ("1", 1, [255, 255, 255]),
    ("CMYK", (0, 255, 255, 0), [255, 0, 0]),
    ("RGBA", (200, 0, 0, 0), [255, 255, 255]),
    ("RGBA", (200, 0, 100, 255), [200, 0, 100]),
    ("LA", (0, 0), [255, 255, 255]),
    ("I;16", 256 * 90 + 5, [90, 90, 90]),
    ("I;16", 65535, [255, 255, 255]),
    ("I", 256 * 90 + 5, [90, 90, 90]),
])
def test_modes(mode, color, expected, tmp_path):
    path = tmp_path / "image.tif"
    Image.new(mode, (4, 4), color).save(path)
    assert np.asarray(open_image(path))[2, 2].tolist() == expected


def test_half_transparent_pixels_are_laid_over_white():
    red, green, blue = np.asarray(open_image(Image.new("RGBA", (2, 2), (255, 0, 0, 128))))[0, 0].tolist()
    assert (red, green) == (255, blue)
    assert green == pytest.approx(127, abs=1)


def test_a_transparent_palette_entry_becomes_white(tmp_path):
    image = Image.new("P", (4, 4), 0)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "palette.png", transparency=0)
    opened = np.asarray(open_image(tmp_path / "palette.png"))
    assert opened[0, 0].tolist() == [255, 255, 255]
    assert opened[0, 1].tolist() == [40, 50, 60]


def test_the_image_given_is_left_as_it_was(photo):
    before = photo.tobytes()
    open_image(photo).paste((0, 0, 0), (0, 0, 30, 20))
    assert photo.tobytes() == before


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp", "tif"])
def test_a_truncated_file_is_named(photo, suffix, tmp_path):
    path = tmp_path / f"cut.{suffix}"
    photo.save(path)
    data = path.read_bytes()
    path.write_bytes(data[:len(data) * 2 // 3])
    with pytest.raises(ValueError, match="cut") as error:
        open_image(path)
    assert str(error.value).startswith(f"cannot read image {path}: ")
    assert str(error.value).endswith("; remove or replace the file")


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>"])
def test_a_file_that_is_no_image_is_named(content, tmp_path):
    path = tmp_path / "page.jpg"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="page.jpg: not an image"):
        open_image({"path": str(path), "bytes": None})


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="gone.jpg: No such file or directory"):
        open_image(tmp_path / "gone.jpg")


def test_broken_bytes_are_named_by_their_path():
    with pytest.raises(ValueError, match="cannot read image train/7.jpg"):
        open_image({"path": "train/7.jpg", "bytes": b"\xff\xd8\xff"})
    with pytest.raises(ValueError, match=r"cannot read image \(in memory\)"):
        open_image({"path": None, "bytes": BytesIO(b"GIF89a").getvalue()})


def test_floating_point_pixels_are_refused(tmp_path):
    Image.new("F", (4, 4), 0.5).save(tmp_path / "depth.tif")
    with pytest.raises(ValueError, match="depth.tif: floating-point pixels"):
        open_image(tmp_path / "depth.tif")
