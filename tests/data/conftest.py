import pytest


@pytest.fixture
def hub(monkeypatch):
    """Puts a set in the Hub's place and collects the calls."""
    calls = []

    def serve(dataset):
        def load_dataset(*args, **kwargs):
            calls.append((args, kwargs))
            return dataset

        monkeypatch.setattr("dcal_hf.data.hub.load_dataset", load_dataset)
        return calls

    return serve
