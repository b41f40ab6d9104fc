"""`--register`: encoders and pair strategies of a user's own file, in the recipes."""

import json
import re
import sys

import pytest
from transformers import ViTMSNConfig

from dcal_hf.models import families_dcal
from dcal_hf.training import pairs

from fgvc_runs import config_file, make_folder
from helpers import TINY_SIZES


OWN = """
import dcal_hf
from dcal_hf.models.vit_dcal import ViTAdapter


class ViTMSNAdapter(ViTAdapter):
    has_pooler = False


dcal_hf.register_encoder("vit_msn", ViTMSNAdapter)
dcal_hf.register_pair_strategy("neighbours", lambda first, second: abs(first - second) == 1)
"""


@pytest.fixture
def own_file(tmp_path, monkeypatch):
    """A file that registers an encoder and a strategy; the registries are restored after the test."""
    monkeypatch.setattr(families_dcal, "ADAPTERS", dict(families_dcal.ADAPTERS))
    monkeypatch.setattr(pairs, "RULES", dict(pairs.RULES))
    monkeypatch.setattr(sys, "path", list(sys.path))
    strategies = list(pairs.PAIR_SAMPLING)
    path = tmp_path / "own_registrations.py"
    path.write_text(OWN)
    yield path
    # The choices of the arguments are the same list object.
    pairs.PAIR_SAMPLING[:] = strategies
    sys.modules.pop(path.stem, None)


def test_a_recipe_trains_a_registered_encoder_with_a_registered_strategy(tmp_path, own_file, run_recipe, capsys):
    backbone = ViTMSNConfig(image_size=16, **TINY_SIZES).to_diff_dict()
    options = {"backbone_config": backbone, "register": str(own_file), "pair_sampling": "neighbours"}
    folder = make_folder(tmp_path / "birds")
    config = config_file(tmp_path, data_dir=str(folder), **options)
    run_recipe("run_fgvc", config, "--do_train", "--do_eval", "--disable_tqdm", "1")
    saved = json.loads((tmp_path / "out" / "config.json").read_text())
    assert saved["backbone_config"]["model_type"] == "vit_msn"
    loading = f"--model_name_or_path {tmp_path / 'out'} --register {own_file} "
    assert capsys.readouterr().out.count(loading) == 2
    assert 'register_encoder("vit_msn"' in (tmp_path / "out" / "README.md").read_text()
    model = ["--model_name_or_path", tmp_path / "out"]
    # As in another process.
    del families_dcal.ADAPTERS["vit_msn"], pairs.RULES["neighbours"], sys.modules[own_file.stem]
    pairs.PAIR_SAMPLING.remove("neighbours")
    images = ["--images", folder / "test", "--output_dir", tmp_path / "answer", "--sheet_images", 0]
    with pytest.raises(ValueError, match="^DCAL has no adapter for the encoder 'vit_msn'"):
        run_recipe("predict", *model, *images)
    run_recipe("predict", *model, *images, "--register", own_file)
    assert len((tmp_path / "answer" / "predictions.csv").read_text().splitlines()) == 1 + 3 * 3


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("missing.py", None, "--register {path}: there is no such Python file."),
        ("genus.txt", "", "--register {path}: there is no such Python file."),
        ("json.py", "", "--register {path}: there is another module json; rename the file."),
        ("sys.py", "", "--register {path}: there is another module sys; rename the file."),
        ("own_genus.py", "import nothing_of_this_name", "--register {path}: ModuleNotFoundError: No module named"),
        ("own_genus.py", "1 / 0", "--register {path}: ZeroDivisionError: division by zero"),
    ],
)
def test_a_file_that_cannot_be_run_is_named(tmp_path, own_file, run_recipe, name, content, sentence):
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises((ValueError, OSError, ImportError), match=re.escape(sentence.format(path=path))):
        run_recipe("run_fgvc", "--register", path)
