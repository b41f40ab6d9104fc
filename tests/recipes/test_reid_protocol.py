from datasets import Dataset, Features
from datasets import Image as ImageFeature
from datasets import List, Value

from helpers import noise_picture


def split(seeds, identities, boxes=None) -> Dataset:
    """Images without paths, as in a Parquet table that was made in memory."""
    columns = {"image": [noise_picture(seed) for seed in seeds], "identity": identities}
    features = {"image": ImageFeature(), "identity": Value("int64")}
    if boxes is not None:
        columns["bbox"], features["bbox"] = boxes, List(Value("float64"))
    return Dataset.from_dict(columns, features=Features(features)).cast_column("image", ImageFeature(decode=False))


def test_splits_of_the_same_identities_may_have_other_images(import_recipe):
    is_same = import_recipe("reid_protocol").is_same
    train, left, right = split([1, 2], [0, 1]), [0, 0, 10, 10], [10, 0, 10, 10]
    assert is_same(train, split([1, 2], [0, 1]))
    assert not is_same(train, split([3, 4], [0, 1]))
    assert not is_same(train, split([1, 2], [0, 2]))
    assert not is_same(split([1, 1], [0, 1], [left, right]), split([1, 1], [0, 1], [right, left]))


def test_the_model_card_names_the_column_that_stands_for_the_camera(import_recipe):
    recipe = import_recipe("run_reid")
    query = Dataset.from_dict({"identity": [1, 1, 2], "camera_id": [0, 1, 1]})
    facts = recipe.describe_data({"query": query}, recipe.DataArguments(data_dir="turtles", camera_column="date"))
    assert facts["cameras (column date)"] == 2 and facts["query images, identities"] == "3, 2"
    facts = recipe.describe_data({"query": query}, recipe.DataArguments(data_dir="turtles"))
    assert facts["cameras"] == 2
