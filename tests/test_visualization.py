import importlib
import os
import sys

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from PIL import Image
from timm.data import create_transform
from transformers import CLIPImageProcessor, TimmWrapperImageProcessor, ViTImageProcessor

from dcal_hf.transforms import fine_grained_processor, reid_processor
from dcal_hf.visualization import (
    attention_figure,
    model_view,
    photograph_overlay,
    ranked_list,
    rollout_overlay,
    save_figure,
    selection_overlay,
)

from pictures import MARKS, brightness, gray, mark, one_hot


BOX = (0, 255, 255)


def box_pixels(picture):
    return (np.asarray(picture) == BOX).all(axis=2)


@pytest.mark.parametrize(
    ("grid", "size", "patch"), [((16, 8), (128, 256), 43), ((3, 5), (100, 42), 8), ((28, 28), (448, 448), 30)]
)
def test_heat_peaks_in_the_middle_of_the_brightest_patch(grid, size, patch):
    heat = brightness(rollout_overlay(gray(*size), one_hot(patch, grid[0] * grid[1]), grid))
    assert heat.shape == (size[1], size[0])
    rows, columns = np.nonzero(heat == heat.max())
    row, column = divmod(patch, grid[1])
    assert abs(rows.mean() + 0.5 - (row + 0.5) * size[1] / grid[0]) <= 1
    assert abs(columns.mean() + 0.5 - (column + 0.5) * size[0] / grid[1]) <= 1


def test_heat_falls_off_bilinearly():
    heat = brightness(rollout_overlay(gray(90, 10, 0), [0.0, 0.5, 1.0], (1, 3)))
    assert (heat == heat[0]).all()
    assert (np.diff(heat[0]) >= 0).all()
    # The value halfway between two patch centres is interpolated.
    centres = heat[0, [15, 30, 45, 60, 75]]
    assert (np.diff(centres) > 0).all()


@pytest.mark.filterwarnings("error")
def test_heat_is_blended_onto_the_image():
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (16, 24, 3), dtype=np.uint8)
    cold = np.asarray(rollout_overlay(Image.fromarray(pixels), np.full(6, 0.2), (2, 3)))
    black = np.asarray(rollout_overlay(gray(24, 16, 0), np.full(6, 0.2), (2, 3)))
    assert np.abs(cold.astype(float) - black - 0.4 * pixels).max() <= 1
    assert black.max() < 10


def test_rollout_scale_does_not_matter():
    rollout = np.random.default_rng(1).random(12).astype(np.float32)
    one, other = (rollout_overlay(gray(40, 30), values, (3, 4)) for values in (rollout, rollout * 1e-4))
    assert np.abs(brightness(one) - brightness(other)).max() <= 1


@pytest.mark.parametrize("selected", [[43], [0, 127], [42, 43, 51]])
def test_boxes_of_a_rectangular_grid(selected):
    expected = np.zeros((256, 128), dtype=bool)
    for patch in selected:
        top, left = 16 * (patch // 8), 16 * (patch % 8)
        expected[[top, top + 15], left:left + 16] = True
        expected[top:top + 16, [left, left + 15]] = True
    picture = rollout_overlay(gray(128, 256), one_hot(5, 128), (16, 8), np.array(selected))
    assert (box_pixels(picture) == expected).all()
    plain = rollout_overlay(gray(128, 256), one_hot(5, 128), (16, 8))
    assert not box_pixels(plain).any()
    assert (np.asarray(plain)[~expected] == np.asarray(picture)[~expected]).all()


def test_boxes_of_patches_with_fractional_sizes():
    # 10 columns for 4 patches: the third spans 5 to 7.5. 7 rows for 2 patches: the second starts at 3.5.
    boxes = box_pixels(rollout_overlay(gray(10, 7), one_hot(0, 8), (2, 4), [6]))
    rows, columns = np.nonzero(boxes)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (4, 6, 5, 7)
    assert not boxes[5, 6]
    assert boxes.sum() == 8


def test_boxes_grow_with_the_image():
    boxes = box_pixels(rollout_overlay(gray(192, 192), one_hot(0, 4), (2, 2), [3]))
    assert boxes[96:102, 96:].all() and boxes[186:, 96:].all() and boxes[96:, 96:102].all()
    assert not boxes[102:186, 102:186].any() and not boxes[:96].any()


def test_tensors_are_arrays():
    rollout = torch.rand(32, generator=torch.Generator().manual_seed(0), requires_grad=True)
    selected = rollout.topk(4).indices
    picture = rollout_overlay(gray(32, 64), rollout.bfloat16(), (8, 4), selected)
    same = rollout_overlay(gray(32, 64), rollout.bfloat16().detach().float().numpy(), (8, 4), selected.numpy())
    assert (np.asarray(picture) == np.asarray(same)).all()


@pytest.mark.parametrize("mode", ["L", "P", "RGBA"])
def test_any_mode_of_image_becomes_rgb(mode):
    image = gray(16, 16, 204).convert(mode)
    for picture in (rollout_overlay(image, np.ones(4), (2, 2)), selection_overlay(image, (2, 2), [0, 1, 2, 3])):
        assert picture.mode == "RGB"
    assert np.asarray(picture).tolist() == np.full((16, 16, 3), 204).tolist()


def test_unselected_patches_are_dimmed():
    pixels = np.asarray(selection_overlay(gray(12, 24), (4, 2), torch.tensor([0, 5])))
    bright = (pixels == 100).all(axis=2)
    expected = np.zeros((24, 12), dtype=bool)
    expected[0:6, 0:6] = True
    expected[12:18, 6:12] = True
    assert (bright == expected).all()
    assert (pixels[~expected] == 25).all()


@pytest.mark.parametrize(("rollout", "shape"), [(np.ones(127), r"\(127,\)"), (np.ones((16, 8)), r"\(16, 8\)")])
def test_rollout_must_fit_the_grid(rollout, shape):
    with pytest.raises(ValueError, match=rf"grid of \(16, 8\) patches needs 128 numbers, got shape {shape}"):
        rollout_overlay(gray(128, 256), rollout, (16, 8))


@pytest.mark.parametrize("patch", [-1, 128])
def test_selected_must_fit_the_grid(patch):
    with pytest.raises(ValueError, match=rf"grid of \(16, 8\) patches has no patch {patch}"):
        rollout_overlay(gray(128, 256), np.ones(128), (16, 8), [3, patch])


def test_figure_shows_image_rollout_and_selection():
    images = [gray(128, 256), gray(60, 40, 30)]
    rollouts = torch.rand(2, 128, generator=torch.Generator().manual_seed(0))
    selected = rollouts.topk(13).indices
    titles = ["1.jpg  true: A$B  predicted: C$D (0.93)", "2.jpg  true: wren  predicted: wren (1.00)"]
    marks = [False, True]
    figure = attention_figure(images, rollouts, (16, 8), selected, titles, correct=marks)
    rows = np.array(figure.axes).reshape(2, 3)
    for row, image, rollout, patches, title, correct in zip(rows, images, rollouts, selected, titles, marks):
        expected = (image, rollout_overlay(image, rollout, (16, 8)), selection_overlay(image, (16, 8), patches))
        for cell, picture in zip(row, expected):
            assert (cell.images[0].get_array() == np.asarray(picture)).all()
        assert row[1].get_xlabel() == title
        assert [mark(cell) for cell in row] == [MARKS[correct], None, None]
    assert [text.get_text() for text in figure.texts] == ["image", "attention rollout", "selected patches"]


def test_figure_without_selected_patches_has_no_such_column():
    figure = attention_figure([gray(8, 8), gray(8, 8)], np.ones((2, 4)), (2, 2), None, ["a", "b"])
    assert len(figure.axes) == 2 * 2
    assert [text.get_text() for text in figure.texts] == ["image", "attention rollout"]


def timm_processor():
    """timm's steps: resize the shorter side to 256 pixels, centre crop of 224."""
    processor = TimmWrapperImageProcessor({"input_size": (3, 224, 224), "crop_pct": 0.875}, architecture="vit")
    processor.val_transforms = create_transform((3, 224, 224), crop_pct=0.875)
    return processor


# For each processor: the input size, and the region of a 300 x 200 photograph that the model sees.
PROCESSORS = {
    "crop": (
        fine_grained_processor(ViTImageProcessor(), (224, 224), 256 / 224), (224, 224), (18.75, 12.5, 281.25, 187.5)
    ),
    "rectangle": (fine_grained_processor(ViTImageProcessor(), (128, 64), 2.0), (128, 64), (75, 50, 225, 150)),
    "resize": (reid_processor(ViTImageProcessor(), (256, 128)), (256, 128), (0, 0, 300, 200)),
    "clip": (CLIPImageProcessor(size={"shortest_edge": 224}), (224, 224), (50, 0, 250, 200)),
    "timm": (timm_processor(), (224, 224), (62.5, 12.5, 237.5, 187.5)),
    "padded": (
        ViTImageProcessor(
            size={"height": 200, "width": 300}, do_center_crop=True, crop_size={"height": 320, "width": 320}
        ),
        (320, 320),
        (-10, -60, 310, 260),
    ),
}


def marked(size, box):
    photograph = Image.new("RGB", size)
    photograph.paste((255, 255, 255), box)
    return photograph


def rollout_of_brightness(photograph, processor, grid):
    """A rollout equal to the brightness of each patch of the processed image."""
    pixels = torch.as_tensor(processor([photograph], return_tensors="pt")["pixel_values"])[0].mean(dim=0)
    return torch.nn.functional.adaptive_avg_pool2d(pixels[None], grid).flatten()


@pytest.mark.parametrize(("processor", "input_size", "view"), PROCESSORS.values(), ids=PROCESSORS)
def test_model_view_is_the_region_that_the_processor_keeps(processor, input_size, view):
    assert np.abs(np.subtract(model_view((300, 200), processor), view)).max() <= 1


@pytest.mark.parametrize("input_size", [(64, 64), (64, 96), (128, 64)])
def test_model_view_is_exact_for_large_photographs(input_size):
    """Sides of which 8 bits tell fewer places apart than there are, and that are multiples of the input's."""
    processor = reid_processor(ViTImageProcessor(), input_size)
    for size in ((640, 480), (1920, 1280)):
        assert np.abs(np.subtract(model_view(size, processor), (0, 0, *size))).max() <= 1


@pytest.mark.parametrize(("processor", "input_size", "view"), PROCESSORS.values(), ids=PROCESSORS)
@pytest.mark.parametrize("middle", [(150, 100), (185, 130), (120, 75)])
def test_the_overlay_puts_patches_at_their_position_in_the_photograph(processor, input_size, view, middle):
    grid = (input_size[0] // 16, input_size[1] // 16)
    column, row = middle
    photograph = marked((300, 200), (column - 2, row - 2, column + 2, row + 2))
    rollout = rollout_of_brightness(photograph, processor, grid)
    picture = photograph_overlay(photograph, processor, rollout, grid, rollout.topk(1).indices)
    assert picture.size == photograph.size
    rows, columns = np.nonzero(box_pixels(picture))
    width, height = (view[2] - view[0]) / grid[1], (view[3] - view[1]) / grid[0]
    assert rows.min() <= row + 1 and row - 2 <= rows.max()
    assert columns.min() <= column + 1 and column - 2 <= columns.max()
    assert np.ptp(columns) + 1 == pytest.approx(width, abs=1.5) and np.ptp(rows) + 1 == pytest.approx(height, abs=1.5)
    heat = brightness(photograph_overlay(photograph, processor, rollout, grid))
    peak = np.argwhere(heat == heat.max()).mean(axis=0)
    assert abs(peak[0] - row) <= height and abs(peak[1] - column) <= width


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1)])
def test_a_photograph_of_one_row_or_column_has_an_overlay(size):
    processor = ViTImageProcessor(size={"height": 16, "width": 16})
    left, top, right, bottom = model_view(size, processor)
    assert (right - left, bottom - top) == size
    assert photograph_overlay(Image.new("RGB", size), processor, np.arange(16.0), (4, 4)).size == size


def test_pixels_outside_the_view_are_unchanged():
    photograph = gray(300, 200, 90)
    pixels = np.asarray(photograph_overlay(photograph, PROCESSORS["clip"][0], np.ones(196), (14, 14)))
    assert (pixels[:, :50] == 90).all() and (pixels[:, 250:] == 90).all() and (pixels[:, 50:250] != 90).all()
    assert np.asarray(photograph).min() == 90


def test_an_overlay_of_a_reversed_array():
    rollout, selected = np.arange(6)[::-1] / 6, np.array([1, 4])[::-1]
    found = rollout_overlay(gray(24, 16, 0), rollout, (2, 3), selected)
    assert found == rollout_overlay(gray(24, 16, 0), rollout.copy(), (2, 3), selected.copy())


def test_exif_orientation_is_applied_to_overlays(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    marked((300, 200), (0, 0, 150, 100)).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as turned:
        picture = photograph_overlay(turned, PROCESSORS["resize"][0], np.zeros(128), (16, 8))
    assert picture.size == (200, 300)
    assert brightness(picture)[50, 150] > brightness(picture)[50, 50]


def test_figure_of_original_photographs():
    photographs, rollouts = [gray(300, 200), gray(200, 300)], np.stack([one_hot(30, 196)] * 2)
    processor = PROCESSORS["clip"][0]
    figure = attention_figure(photographs, rollouts, (14, 14), [[30]] * 2, processor=processor)
    for row, photograph in zip(np.array(figure.axes).reshape(2, 3), photographs):
        shown = [cell.images[0].get_array() for cell in row]
        assert (shown[0] == np.asarray(photograph)).all()
        assert (shown[1] == np.asarray(photograph_overlay(photograph, processor, rollouts[0], (14, 14)))).all()
        left, top = model_view(photograph.size, processor)[:2]
        rows, columns = np.nonzero((shown[2] == 100).all(axis=2))
        assert (columns.min(), rows.min()) == (left + -(-2 * 200 // 14), top + -(-2 * 200 // 14))


def test_figure_without_titles():
    figure = attention_figure([gray(8, 8)], np.ones((1, 4)), (2, 2), np.zeros((1, 1), dtype=int))
    assert [(cell.get_xlabel(), mark(cell)) for cell in figure.axes] == [("", None)] * 3


@pytest.mark.parametrize(
    "lengths", [(2, 1, 1, 1, 1), (1, 2, 1, 1, 1), (1, 1, 2, 1, 1), (1, 1, 1, 2, 1), (1, 1, 1, 1, 2), (0, 0, 0, 0, 0)]
)
def test_figure_needs_as_many_of_each(lengths):
    images, rollouts, selected, titles, marks = lengths
    sentence = (
        f"got {images} images, {rollouts} rollouts, {selected} selections, {titles} titles and {marks} marks"
    )
    with pytest.raises(ValueError, match=sentence):
        attention_figure(
            [gray(8, 8)] * images,
            np.ones((rollouts, 4)),
            (2, 2),
            np.zeros((selected, 1), dtype=int),
            ["?"] * titles,
            correct=[True] * marks,
        )


def test_ranked_list_of_one_query():
    matches = [gray(8, 8, level) for level in (10, 20, 30)]
    figure = ranked_list(
        gray(8, 16), matches, np.array([0.9, 0.81234, -0.5]), [True, False, None], ["a$b$", "robin.jpg", ""],
        "wren 7", "distance",
    )
    query, *cells = figure.axes
    assert (query.images[0].get_array() == np.asarray(gray(8, 16))).all()
    for cell, image in zip(cells, matches, strict=True):
        assert (cell.images[0].get_array() == np.asarray(image)).all()
    headings = [cell.get_title() for cell in figure.axes]
    assert headings == ["query", "1: distance 0.900", "2: distance 0.812", "3: distance -0.500"]
    assert [cell.get_xlabel() for cell in figure.axes] == ["wren 7", "a$b$", "robin.jpg", ""]
    assert [mark(cell) for cell in figure.axes] == [(to_rgba("black"),), MARKS[True], MARKS[False], None]


@pytest.mark.parametrize(
    "scores, expected",
    [
        ([0.0101, 0.0104, 0.5], ["0.0101", "0.0104", "0.5000"]),
        ([0.25, 0.25, 1], ["0.250", "0.250", "1.000"]),
        # At most the digits of float32.
        ([0.25, 0.25 + 1e-9], ["0.2500000", "0.2500000"]),
        ([], []),
    ],
)
def test_scores_have_enough_digits_to_distinguish_neighbours(scores, expected):
    figure = ranked_list(gray(8, 8), [gray(8, 8)] * len(scores), scores)
    assert [cell.get_title().partition(": ")[2] for cell in figure.axes[1:]] == expected


def test_ranked_list_of_several_queries():
    figure = ranked_list(
        [gray(8, 8)] * 2, [[gray(8, 8)] * 2, [gray(8, 8)]], [[0.9, 0.9004], [0.7]], [np.array([True, False]), [True]]
    )
    rows = figure.axes[:3], figure.axes[3:]
    titles = [[cell.get_title() for cell in row] for row in rows]
    assert titles == [["query", "1: 0.9000", "2: 0.9004"], ["query", "1: 0.7000"]]
    assert [[mark(cell) for cell in row[1:]] for row in rows] == [[MARKS[True], MARKS[False]], [MARKS[True]]]


@pytest.mark.parametrize("what", ["scores", "correct", "titles"])
def test_ranked_list_needs_as_many_of_each(what):
    arguments = {"scores": [0.5, 0.4], "correct": [True, True], "titles": ["a", "b"]}
    arguments[what] = arguments[what][:1]
    with pytest.raises(ValueError, match="one score, mark and title for each match, got 1 queries"):
        ranked_list(gray(8, 8), [gray(8, 8)] * 2, **arguments)


def test_ranked_list_needs_matches_for_each_query():
    with pytest.raises(ValueError, match="got 2 queries, 2 titles of them and rows of"):
        ranked_list([gray(8, 8)] * 2, [[gray(8, 8)]], [[0.5]])


@pytest.mark.parametrize(("name", "start"), [("a.png", b"\x89PNG"), ("a.pdf", b"%PDF")])
def test_figure_is_saved_by_its_suffix(tmp_path, name, start):
    title = ["true: $\\frac  predicted: x_y^z$ (0.10)"]
    figure = attention_figure([gray(8, 8)], np.ones((1, 4)), (2, 2), np.zeros((1, 1), dtype=int), title)
    save_figure(figure, tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(start)
    assert os.listdir(tmp_path) == [name]


def test_a_jpeg_looks_like_the_png(tmp_path):
    figure = attention_figure([gray(8, 8)], np.ones((1, 4)), (2, 2), [[1]], ["wren.jpg"], correct=[True])
    for name in ("a.png", "a.jpg"):
        save_figure(figure, tmp_path / name)
    png, jpeg = (np.asarray(Image.open(tmp_path / name).convert("RGB"), float) for name in ("a.png", "a.jpg"))
    # At the quality that Pillow has by default it is 0.40.
    assert png.shape == jpeg.shape and np.abs(png - jpeg).mean() < 0.37


def test_a_failed_save_keeps_the_old_figure(tmp_path):
    path = tmp_path / "a.nonsense"
    path.write_text("old")
    with pytest.raises(ValueError, match="nonsense"):
        save_figure(Figure(), path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.nonsense"]


def test_missing_matplotlib_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "dcal_hf.visualization")
    with pytest.raises(ImportError, match=r"needs matplotlib: pip install dcal_hf\[pictures\]"):
        importlib.import_module("dcal_hf.visualization")
