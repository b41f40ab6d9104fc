"""Encoders and pair strategies that users register, as in the README."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.utils.data import BatchSampler
from transformers import AutoModel, HfArgumentParser, ViTMSNConfig, ViTMSNModel

import dcal_hf
from dcal_hf import DCALConfig, DCALForImageClassification, DCALTrainer
from dcal_hf.models import families_dcal
from dcal_hf.training import IdentityBalancedSampler, PairSampler, pairs
from dcal_hf.training.pairs import PairCollator, batch_pairs, pair_up

from helpers import TINY_SIZES, add_noise


README = Path(__file__).parents[1] / "README.md"
# Five of the ten pairs of classes are allowed: 0 with all, and 1 with itself.
ALLOWED = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]], dtype=bool)


@pytest.fixture(autouse=True)
def registries(monkeypatch):
    """Restores the registries after a test."""
    monkeypatch.setattr(families_dcal, "ADAPTERS", dict(families_dcal.ADAPTERS))
    monkeypatch.setattr(pairs, "RULES", dict(pairs.RULES))
    strategies = list(pairs.PAIR_SAMPLING)
    yield
    # The choices of the arguments are the same list object.
    pairs.PAIR_SAMPLING[:] = strategies


@pytest.fixture
def registered(tmp_path, monkeypatch) -> dict:
    """The names that the README's example defines, run with a small checkpoint of its encoder."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    plain = add_noise(ViTMSNModel(ViTMSNConfig(image_size=16, **TINY_SIZES)), 0.1)
    plain.save_pretrained(tmp_path / "facebook" / "vit-msn-small")
    section = README.read_text(encoding="utf-8").split("### Custom encoders and pair strategies")[1]
    namespace = {"plain": plain}
    exec(re.search("```python\n(.*?)```", section, re.DOTALL)[1], namespace)
    return namespace


def test_the_example_in_the_readme(registered, tmp_path):
    model, pixel_values = registered["model"].eval(), torch.randn(4, 3, 16, 16)
    tokens = registered["plain"](pixel_values).last_hidden_state
    torch.testing.assert_close(model.dcal(pixel_values).last_hidden_state, tokens)
    own = model.dcal(pixel_values, pairs=torch.tensor([[1, 1], [2, 2]])).pwca_embedding
    torch.testing.assert_close(own, tokens[[1, 1, 2, 2], 0])
    assert not torch.allclose(model.dcal(pixel_values, pairs=torch.tensor([[1, 2]])).pwca_embedding, tokens[1:3, 0])

    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(AutoModel.from_pretrained(tmp_path / "saved").eval()(pixel_values)[0], tokens)
    dataset = Dataset.from_dict({"label": [0, 1, 2, 3]}).with_transform(
        lambda rows: {"pixel_values": [pixel_values[number] for number in rows["label"]], "labels": rows["label"]}
    )
    arguments = registered["arguments"]
    arguments.dataloader_pin_memory = False  # torch warns about it without a GPU
    batch = next(iter(DCALTrainer(model, arguments, train_dataset=dataset).get_train_dataloader()))
    paired = batch["labels"].cpu()[batch["pairs"].cpu()].sort(dim=1).values
    assert sorted(paired.tolist()) == [[0, 1], [2, 3]]


def test_loading_without_registration_explains_what_is_missing(registered, tmp_path):
    registered["model"].save_pretrained(tmp_path / "saved")
    del families_dcal.ADAPTERS["vit_msn"]
    sentence = r"^DCAL has no adapter for the encoder 'vit_msn': .* dcal_hf.register_encoder\('vit_msn', .*timm_eva\.$"
    with pytest.raises(ValueError, match=sentence):
        DCALForImageClassification.from_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match=sentence):
        DCALForImageClassification.from_backbone(tmp_path / "facebook" / "vit-msn-small")
    sentence = "^transformers does not know the encoder 'my_vit': .*call AutoConfig.register,.* adapter\\.$"
    with pytest.raises(ValueError, match=sentence):
        DCALConfig(backbone_config={"model_type": "my_vit"})
    config = tmp_path / "saved" / "config.json"
    config.write_text(config.read_text().replace("vit_msn", "my_vit"))
    with pytest.raises(ValueError, match=sentence):
        DCALForImageClassification.from_pretrained(tmp_path / "saved")


def test_names_are_unique_and_mistakes_raise_clear_errors():
    with pytest.raises(ValueError, match="There is an adapter for 'vit' already, ViTAdapter: pass exist_ok=True to"):
        dcal_hf.register_encoder("vit", families_dcal.ViTAdapter)
    with pytest.raises(TypeError, match="adapter of 'new' must be a subclass of EncoderAdapter"):
        dcal_hf.register_encoder("new", ViTMSNModel)
    with pytest.raises(ValueError, match="There is a pair strategy 'noise' already: choose another name"):
        dcal_hf.register_pair_strategy("noise", np.equal, exist_ok=True)
    with pytest.raises(TypeError, match="'new' must be a function of two arrays of classes"):
        dcal_hf.register_pair_strategy("new", "any")
    dcal_hf.register_pair_strategy("later", np.less)
    with pytest.raises(ValueError, match="allows classes 0 and 1 in one order only: make it symmetric"):
        pair_up(np.arange(4), "later", np.random.default_rng(0))


def test_a_registration_can_be_replaced(registered):
    """As when a notebook's cell is run again."""
    class Again(families_dcal.ViTAdapter):
        has_pooler = False

    dcal_hf.register_encoder("vit_msn", Again, exist_ok=True)
    assert families_dcal.ADAPTERS["vit_msn"] is Again
    with pytest.raises(ValueError, match="There is a pair strategy 'same_genus' already: pass exist_ok=True"):
        dcal_hf.register_pair_strategy("same_genus", np.not_equal)
    dcal_hf.register_pair_strategy("same_genus", np.not_equal, exist_ok=True)
    labels = np.array([0, 1, 0, 1])
    images = pair_up(labels, "same_genus", np.random.default_rng(0))[0]
    assert images.shape == (2, 2) and (labels[images].sum(axis=1) == 1).all()


def test_command_lines_accept_registered_strategies(tmp_path):
    parser = HfArgumentParser((dcal_hf.DCALTrainingArguments,))
    dcal_hf.register_pair_strategy("equal", np.equal)
    command = ["--output_dir", str(tmp_path), "--use_cpu", "--pair_sampling", "equal"]
    assert parser.parse_args_into_dataclasses(command)[0].pair_sampling == "equal"


@pytest.mark.parametrize("batch_size", [5, 16])
def test_pairs_satisfy_the_registered_strategy(batch_size):
    labels = np.random.default_rng(0).choice(4, size=101, p=[0.4, 0.3, 0.2, 0.1])
    dcal_hf.register_pair_strategy("with_0", lambda first, second: ALLOWED[first, second])
    partners, alone = pair_up(labels, "with_0", np.random.default_rng(1))
    assert sorted([*partners.ravel(), *alone]) == list(range(101))
    assert all(ALLOWED[labels[first], labels[second]] for first, second in partners)
    # The unpaired images cannot be paired with each other.
    assert not any(ALLOWED[labels[a], labels[b]] for a in alone for b in alone if a != b)
    sampler, counted, kinds = PairSampler(labels, batch_size, "with_0"), 0, set()
    for batch in BatchSampler(sampler, batch_size, drop_last=False):
        classes = labels[batch]
        collate = PairCollator(lambda samples: {"labels": torch.tensor([s["labels"] for s in samples])}, "with_0")
        found = collate([{"labels": label} for label in classes])["pairs"]
        assert torch.equal(found, batch_pairs(torch.from_numpy(classes), "with_0"))
        assert all(ALLOWED[classes[a], classes[b]] for a, b in found)
        kinds |= {frozenset((classes[a], classes[b])) for a, b in found.tolist()}
        counted += 2 * len(found)
    assert counted == 101 - sampler.count_unpaired() and len(kinds) == 5
    sampler.set_epoch(1)
    assert list(sampler) != list(PairSampler(labels, batch_size, "with_0"))


def test_the_strategy_gets_the_original_identities():
    """Only every third number is an individual, and the balanced sampler renumbers them."""
    labels = np.repeat([0, 3, 6, 9], 6)
    dcal_hf.register_pair_strategy("neighbours", lambda first, second: abs(first - second) == 3)
    sampler = IdentityBalancedSampler(labels, 8, 2, pair_sampling="neighbours")
    batches = torch.from_numpy(labels[sampler.order()]).split(8)
    found = [batch[batch_pairs(batch, "neighbours")] for batch in batches]
    assert sampler.count_unpaired() < 12 and all(((x[:, 0] - x[:, 1]).abs() == 3).all() for x in found)
