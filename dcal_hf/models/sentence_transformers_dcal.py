"""Writes two files that make sentence-transformers load the embeddings of a checkpoint.

Without them it would average `last_hidden_state` over all tokens, which is neither SA's nor GLCA's embedding.
"""

import json
from pathlib import Path


# https://sbert.net, from version 5.4, the first that loads image encoders.
FILES = {
    "modules.json": [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}],
    "sentence_bert_config.json": {
        "transformer_task": "feature-extraction",
        "modality_config": {"image": {"method": "forward", "method_output_name": "embeddings"}},
        "module_output_name": "sentence_embedding",
    },
}


def save_for_sentence_transformers(folder: str | Path) -> None:
    """Writes both files into the folder of a checkpoint."""
    for name, content in FILES.items():
        Path(folder, name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


__all__ = ["save_for_sentence_transformers"]
