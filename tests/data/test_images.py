import os
import sys
from io import BytesIO

import numpy as np
import pillow_heif
import pytest
from PIL import EpsImagePlugin, Image, ImageFile
from transformers.image_utils import load_image

from dcal_hf.data import check_image, images, open_image
from dcal_hf.data.image_files import IMAGE_SUFFIXES

from helpers import noise_picture


@pytest.fixture(autouse=True)
def reset_warnings(monkeypatch):
    monkeypatch.setattr(images, "_warned", set())


@pytest.fixture
def photo():
    pixels = np.random.default_rng(0).integers(0, 256, size=(20, 30, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def save(photo, path):
    if path.suffix in (".heic", ".heif"):
        pillow_heif.from_pillow(photo).save(path)
    else:
        photo.save(path, format="JPEG" if path.suffix == ".jfif" else None)


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


def test_bytes_take_precedence_over_the_path(photo, photo_path):
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
    ("RGBA", (200, 0, 0, 0), [200, 0, 0]),
    ("RGBA", (200, 0, 100, 255), [200, 0, 100]),
    ("LA", (40, 0), [40, 40, 40]),
    ("I;16", 256 * 90 + 5, [90, 90, 90]),
    ("I;16", 65535, [255, 255, 255]),
    ("I", 256 * 90 + 5, [90, 90, 90]),
])
def test_modes(mode, color, expected, tmp_path):
    path = tmp_path / "image.tif"
    Image.new(mode, (4, 4), color).save(path)
    assert np.asarray(open_image(path))[2, 2].tolist() == expected


def transparent_files(folder):
    """PNG images of noise in every mode that supports transparency."""
    noise = np.random.default_rng(0).integers(0, 256, size=(20, 30, 4), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "RGBA.png")
    Image.fromarray(noise[..., :2], "LA").save(folder / "LA.png")
    Image.fromarray(noise[..., :3]).quantize(16).save(folder / "P.png", transparency=3)
    Image.fromarray(noise[..., :3]).quantize(2).save(folder / "P_of_alphas.png", transparency=bytes([0, 128]))
    Image.fromarray(noise[..., :3]).save(folder / "RGB.png", transparency=tuple(noise[0, 0, :3].tolist()))
    return sorted(folder.iterdir())


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
def test_transparent_images_are_read_as_pipelines_do_and_reported_once(tmp_path, caplog):
    for path in transparent_files(tmp_path):
        assert np.array_equal(open_image(path), load_image(str(path)))
    assert [record.getMessage().split(" is ")[0] for record in caplog.records] == [str(tmp_path / "LA.png")]
    assert "Draw it over a background" in caplog.text


def test_an_opaque_alpha_channel_is_not_reported(tmp_path, caplog):
    Image.new("RGBA", (4, 4), (1, 2, 3, 255)).save(tmp_path / "opaque.png")
    assert np.asarray(open_image(tmp_path / "opaque.png"))[0, 0].tolist() == [1, 2, 3] and not caplog.records


def test_16_bit_images_are_scaled_and_reported_once(tmp_path, caplog):
    """A pipeline clips the file, but not the output of `open_image`."""
    for name in ("first.png", "second.png"):
        Image.fromarray(np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)).save(tmp_path / name)
        opened = open_image(tmp_path / name)
    assert np.asarray(opened)[..., 0].flatten().tolist() == list(range(256))
    assert np.array_equal(load_image(opened), opened) and np.mean(load_image(str(tmp_path / name))) > 250
    (record,) = caplog.records
    assert "first.png" in record.getMessage() and "give them open_image(path)" in record.getMessage()


def test_16_bit_images_with_a_transparent_grey_are_scaled(tmp_path):
    grey = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(grey).save(tmp_path / "keyed.png", transparency=int(grey[3, 5]))
    assert np.asarray(open_image(tmp_path / "keyed.png"))[..., 0].flatten().tolist() == list(range(256))


def test_the_given_image_is_not_modified(photo):
    before = photo.tobytes()
    open_image(photo).paste((0, 0, 0), (0, 0, 30, 20))
    assert photo.tobytes() == before


@pytest.mark.parametrize("read", [open_image, check_image])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp", "tif", "heic"])
def test_a_truncated_file_is_named(photo, suffix, read, tmp_path):
    path = tmp_path / f"cut.{suffix}"
    save(photo, path)
    data = path.read_bytes()
    path.write_bytes(data[:len(data) * 2 // 3])
    with pytest.raises(ValueError, match="cut") as error:
        read(path)
    assert str(error.value).startswith(f"cannot read image {path}: ")
    assert str(error.value).endswith("; remove or replace the file")


@pytest.mark.parametrize("progressive", [False, True])
def test_check_image_detects_truncation_unless_it_reads_only_the_header(progressive, tmp_path):
    path = tmp_path / "photo.jpg"
    noise_picture(width=300, height=200).save(path, progressive=progressive)
    assert check_image(path) == (300, 200)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="photo.jpg: image file is truncated"):
        check_image(path)
    assert check_image(path, decode=False) == (300, 200)


def test_check_image_rejects_what_open_image_rejects(photo, tmp_path):
    Image.new("F", (4, 4), 0.5).save(tmp_path / "depth.tif")
    photo.save(tmp_path / "large.png")
    for name in ("depth.tif", "large.png", "gone.png"):
        messages = []
        for read in (open_image, check_image):
            with pytest.raises(ValueError, match=name) as error:
                read(tmp_path / name, 599)
            messages.append(str(error.value))
        assert messages[0] == messages[1]


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>"])
def test_a_file_that_is_not_an_image_is_named(content, tmp_path):
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


def test_floating_point_pixels_are_rejected(tmp_path):
    Image.new("F", (4, 4), 0.5).save(tmp_path / "depth.tif")
    with pytest.raises(ValueError, match="depth.tif: floating-point pixels"):
        open_image(tmp_path / "depth.tif")


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n0 0 4 4 rectfill\nshowpage\n%%EOF\n"


@pytest.mark.parametrize("kind", ["file", "bytes"])
def test_postscript_does_not_run_ghostscript(kind, tmp_path, monkeypatch):
    """Pillow passes EPS content to Ghostscript, whatever the suffix."""
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was started"))
    path = tmp_path / "bird.jpg"
    path.write_bytes(EPS)
    with pytest.raises(ValueError, match="bird.jpg: not an image of the formats AVIF, BMP, .*, WEBP"):
        open_image(path if kind == "file" else {"path": str(path), "bytes": EPS})


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES))
def test_every_image_suffix_can_be_read(photo, suffix, tmp_path):
    save(photo, tmp_path / f"photo{suffix}")
    assert open_image(tmp_path / f"photo{suffix}").size == photo.size


@pytest.mark.parametrize("kind", ["file", "bytes"])
def test_heic_is_recognised_by_content_and_needs_the_extra(kind, tmp_path, monkeypatch):
    path = tmp_path / "phone.jpg"
    photo = Image.new("RGB", (30, 20), (200, 40, 90))
    pillow_heif.from_pillow(photo).save(path)
    image = path if kind == "file" else {"path": str(path), "bytes": path.read_bytes()}
    monkeypatch.setattr(Image, "OPEN", {name: opener for name, opener in Image.OPEN.items() if name != "HEIF"})
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "pillow_heif", None)
        with pytest.raises(ValueError, match=r'phone.jpg: HEIC needs pillow-heif: pip install "dcal_hf\[heic\]"'):
            open_image(image)
    assert np.abs(np.asarray(open_image(image), int) - np.asarray(photo, int)).mean() < 10


def test_the_first_image_of_an_mpo_file_is_read(photo, tmp_path):
    photo.save(tmp_path / "phone.jpg", format="MPO", save_all=True, append_images=[photo])
    assert open_image(tmp_path / "phone.jpg").size == photo.size


def test_pipes_and_folders_are_rejected_without_blocking(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    for name in ("pipe.jpg", "folder.jpg"):
        with pytest.raises(ValueError, match=f"{name}: not a regular file; remove or replace"):
            open_image(tmp_path / name)


# Pillow raises its own warning first.
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("side", "sentence"),
    [
        (10_000, "it has 10000 x 10000 pixels, more than max_pixels = 89478485; if you trust it, raise max_pixels"),
        (20_000, "too many pixels; if you trust it, raise max_pixels and PIL.Image.MAX_IMAGE_PIXELS"),
    ],
)
def test_images_with_too_many_pixels_are_rejected_before_decoding(side, sentence, tmp_path, monkeypatch):
    """A small file whose decoded pixels would take hundreds of MB."""
    path = tmp_path / "bomb.png"
    Image.new("1", (side, side)).save(path)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("it was decoded"))
    with pytest.raises(ValueError, match=f"bomb.png: {sentence}"):
        open_image(path)


def test_max_pixels(photo, photo_path):
    assert open_image(photo_path, max_pixels=600).size == (30, 20)
    for image in (photo, photo_path, {"path": None, "bytes": photo_path.read_bytes()}):
        with pytest.raises(ValueError, match="30 x 20 pixels, more than max_pixels = 599; .* raise max_pixels"):
            open_image(image, max_pixels=599)
