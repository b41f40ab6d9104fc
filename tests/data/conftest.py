import pytest


@pytest.fixture
def hub(monkeypatch):
    """Serves a data set instead of the Hub, and records the calls."""
    calls = []

    def serve(dataset):
        def load_dataset(*args, **kwargs):
            calls.append((args, kwargs))
            return dataset

        monkeypatch.setattr("dcal_hf.data.hub.load_dataset", load_dataset)
        return calls

    return serve
