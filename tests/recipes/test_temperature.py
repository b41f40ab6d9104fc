"""What the model card says of the calibration."""

import re

import pytest


@pytest.mark.parametrize(
    ("scaled", "sentence"),
    [
        (0.05, "20.00 %; 5.00 % if the logits are divided by the temperature 2.5, which was fitted"),
        (0.25, "20.00 %; 25.00 %, so not better, if the logits are divided by the temperature 2.5, which was fitted"),
    ],
)
def test_the_card_says_whether_the_temperature_helps(import_recipe, scaled, sentence):
    text = import_recipe("temperature").describe_calibration({"ece": 0.2, "temperature": 2.5, "ece_scaled": scaled})
    assert re.search(re.escape(sentence), text)
    assert ("--calibrated" in text) == (scaled > 0.2)
