import logging

import pytest

from dcal_hf.data import load_fgvc, load_reid

from helpers import noise_picture


def save(folder, *names):
    """Saves noise images; the number at the start of a name is the seed."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise_picture(int(path.stem.split("_")[0])).save(path)
    return folder


def warnings(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (("train/finch/5_copy.png", "train/finch/4.png"), "{root} has 1 image with copies in two classes"),
        (("validation/wren/1_copy.png",), "{root} has 1 image with copies in two splits"),
    ],
)
def test_an_image_in_two_classes_or_splits_is_reported(tmp_path, caplog, names, sentence):
    own = [f"train/wren/{number}.png" for number in range(3)] + ["train/robin/5.png", "validation/wren/9.png"]
    root = save(tmp_path, *own, "train/finch/7.png", *names)
    with caplog.at_level(logging.WARNING):
        load_fgvc("imagefolder", root)
    (message,) = warnings(caplog)
    assert message.startswith(sentence.format(root=root)) and names[0] in message


def test_an_image_of_two_individuals_is_reported(tmp_path, caplog):
    for identity in "abcd":
        save(tmp_path, *(f"{identity}/{ord(identity) + 10 * number}.png" for number in range(4)))
    with caplog.at_level(logging.WARNING):
        load_reid(tmp_path)
        assert warnings(caplog) == []
        save(tmp_path, "b/97_copy.png")
        load_reid(tmp_path, test_fraction=0.5)
    assert "has 1 image with copies" in warnings(caplog)[0] and "in two classes or identities" in warnings(caplog)[0]
    assert "97.png" in warnings(caplog)[0] and "97_copy.png" in warnings(caplog)[0]


def test_a_row_repeated_under_another_identity_is_reported(tmp_path, caplog):
    save(tmp_path, *(f"{number}.png" for number in range(8)))
    rows = [f"{number}.png,{number % 4}" for number in range(8)] + ["0.png,1"]
    (tmp_path / "birds.csv").write_text("\n".join(["image,identity", *rows]))
    with caplog.at_level(logging.WARNING):
        load_reid(tmp_path / "birds.csv")
    assert "in two classes or identities" in warnings(caplog)[0]
