"""`torch.export` with a dynamic batch size."""

import pytest
import torch

from helpers import classifier, images


@pytest.mark.slow
def test_any_batch_size_runs_through_an_exported_graph(any_backbone_config):
    model = classifier(any_backbone_config)
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(model, (images()[:3],), dynamic_shapes={"pixel_values": batch}, strict=False)
    for size in (1, 2, 5):
        pixel_values = torch.randn(size, 3, 32, 32)
        with torch.no_grad():
            found, expected = program.module()(pixel_values), model(pixel_values)
        torch.testing.assert_close(found["logits"], expected.logits)
        torch.testing.assert_close(found["embeddings"], expected.embeddings)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"branches": ("sa",)},
        {"glca_readout": "cls"},
        {"glca_scope": "local"},
        {"local_query_selection": "last_layer"},
        {"local_query_selection": "similarity"},
        {"attn_implementation": "eager"},
    ],
    ids=lambda options: "-".join(map(str, *options.items())),
)
def test_any_readout_runs_through_an_exported_graph(vit_config, options):
    model = classifier(vit_config, **options)
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(model, (images()[:3],), dynamic_shapes={"pixel_values": batch}, strict=False)
    pixel_values = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(pixel_values)["logits"], model(pixel_values).logits)
