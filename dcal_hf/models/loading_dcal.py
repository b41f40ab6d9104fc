"""Checks that a checkpoint can be read, and is complete and finite."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from .loss_dcal import UncertaintyWeights
from .validation_dcal import BRANCHES


# Configuration fields that add modules which the checkpoint may not have.
NEW_PARTS = frozenset({"branches", "loss_weighting", "neck", "num_glca_blocks"})
# One for each branch.
LOG_VARIANCES = "loss_weights.log_vars"
# The number of tensors that an error message lists, and of characters that it quotes from another error.
SHOWN = 3
MAX_REASON = 300
# Longer messages, such as transformers' lists of all models, are quoted as well.
MAX_SENTENCE = 1_000


class UnknownEncoderError(ValueError):
    """The encoder of a checkpoint is not registered. Nothing is wrong with the checkpoint."""


@contextmanager
def naming(source: str, file: str | None = None) -> Iterator[None]:
    """Converts errors while a checkpoint is read to one that names it, because any size or name in it can be wrong.

    Args:
        source (`str`): Name or path of the checkpoint, for the message.
        file (`str`, *optional*): The file of it that is read, if it is only one.

    Raises:
        ValueError: If the block fails. Errors are kept if the checkpoint cannot be found (`OSError`), a library is
            missing, the encoder is unknown, or memory runs out.
    """
    try:
        yield
    except (OSError, ImportError, MemoryError, torch.OutOfMemoryError, UnknownEncoderError):
        raise
    except Exception as error:
        message = str(error)
        if type(error) is ValueError and source in message and "\n" not in message and len(message) < MAX_SENTENCE:
            raise
        reason = " ".join(message.split()).rstrip(".")[:MAX_REASON] or type(error).__name__
        what = f"The checkpoint {source}" if file is None else f"{file} of the checkpoint {source}"
        raise ValueError(f"{what} cannot be read: {reason}; check the options, or download it again.") from error


@contextmanager
def naming_encoder(source: str) -> Iterator[None]:
    """As [`naming`], but keeps sentences about the encoder, with the checkpoint's name before them."""
    with naming(source):
        try:
            yield
        except ValueError as error:
            if type(error) is not ValueError or "\n" in str(error):
                raise
            raise ValueError(f"{source}: {error}") from error


def read_encoder_config(source: str, pretrained_kwargs: dict[str, Any]) -> PreTrainedConfig:
    """Reads the configuration of a plain encoder.

    Args:
        source (`str`): Name or path of the checkpoint.
        pretrained_kwargs (`dict`): Arguments of the encoder's `from_pretrained`.

    Raises:
        ValueError: If it cannot be read; see [`naming`].
    """
    # A configuration would keep "auto", which only the weights resolve.
    options = {name: value for name, value in pretrained_kwargs.items() if (name, value) != ("dtype", "auto")}
    with naming(source, "config.json"):
        return AutoConfig.from_pretrained(source, **options)


def read_index(source: str) -> list[str]:
    """The names of the weights' files in a folder, if they are in several files; otherwise none.

    Raises:
        ValueError: If their list is damaged, or has files that are missing or outside of the folder; the message names
            it.
    """
    index = Path(source, SAFE_WEIGHTS_INDEX_NAME)
    if Path(source, SAFE_WEIGHTS_NAME).is_file() or not index.is_file():
        return []
    try:
        return _listed_files(index)
    except ValueError as error:
        raise ValueError(
            f"The checkpoint {source} is damaged: {SAFE_WEIGHTS_INDEX_NAME} {error}: download it again."
        ) from error


def _listed_files(index: Path) -> list[str]:
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError("is not valid JSON") from error
    content = content if isinstance(content, dict) else {}
    files, metadata = content.get("weight_map"), content.get("metadata")
    is_map = isinstance(files, dict) and all(isinstance(file, str) for file in files.values())
    if not is_map or not files or not isinstance(metadata, dict):
        raise ValueError("does not list the files of the weights")
    names, present = sorted(set(files.values())), {path.name for path in index.parent.iterdir() if path.is_file()}
    for name in names:
        if Path(name).name != name:
            raise ValueError(f"lists {_quoted(name)}, which is no file of this folder")
        if name not in present:
            raise ValueError(f"lists {_quoted(name)}, which is missing")
    return names


def _quoted(file: str) -> str:
    return " ".join(file.split())[:MAX_REASON]


def check_complete(model: nn.Module, source: str, loading_info: dict[str, Any]) -> None:
    """Checks that the checkpoint has all tensors of a [`DCALPreTrainedModel`].

    The head may be missing if the checkpoint is of another task or has none.

    Args:
        source (`str`): Name or path of the checkpoint, for the message.
        loading_info (`dict`): The loading information that `from_pretrained` returns.

    Raises:
        ValueError: If a tensor is missing; the message names it.
    """
    missing = sorted(loading_info["missing_keys"])
    is_own = type(model).__name__ in (model.config.architectures or ())
    if missing and (is_own or model.base_model is model):
        raise ValueError(
            f"The checkpoint {source} is incomplete, it lacks {_some(missing)}: download it again, or pass "
            "output_loading_info=True to initialise these tensors."
        )


def check_sizes(loading_info: dict[str, Any]) -> None:
    """Checks that all tensors of the checkpoint have the sizes of the model's, except the log-variances.

    Raises:
        ValueError: If one has another size; the message names it.
    """
    names = sorted({name for name, *_ in loading_info["mismatched_keys"]} - {LOG_VARIANCES})
    if names:
        raise ValueError(
            f"{_some(names)} {'has' if len(names) == 1 else 'have'} another size than in the model: pass "
            "ignore_mismatched_sizes=True to initialise such tensors"
        )


@torch.no_grad()
def match_log_variances(model: nn.Module, source: str, options: dict[str, Any]) -> None:
    """Gives each branch its own log-variance: transformers loads them by position.

    With other branches than those of the checkpoint, they are all newly initialised.

    Args:
        source (`str`): Name or path of the checkpoint.
        options (`dict`): Arguments of `from_pretrained`. Only `branches` and `config` can change the branches.
    """
    weights = getattr(model, "loss_weights", None)
    if not isinstance(weights, UncertaintyWeights) or not {"branches", "config"} & set(options):
        return
    config, _ = model.config_class.get_config_dict(source, **options)
    saved = tuple(config.get("branches", BRANCHES))
    if set(saved) == set(weights.branches):
        weights.log_vars.copy_(weights.log_vars[[saved.index(name) for name in weights.branches]])
    else:
        weights.log_vars.fill_(weights.initial_log_var)


def check_encoder(encoder: nn.Module, source: str, loading_info: dict[str, Any]) -> None:
    """Checks that the checkpoint of a plain encoder has all tensors except the pooler's, and that they are finite.

    Raises:
        ValueError: If a tensor is missing or not finite; the message names it.
    """
    missing = sorted(name for name in loading_info["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise ValueError(f"The checkpoint {source} is incomplete, it lacks {_some(missing)}: download it again.")
    check_finite(encoder, source)


def check_finite(model: nn.Module, source: str) -> None:
    """Checks that a model's tensors are finite, except those that accelerate offloads to disk.

    Raises:
        ValueError: If a tensor of the model holds NaN or infinity; the message names it and the `source`.
    """
    broken = find_non_finite(model)
    if broken is not None:
        raise ValueError(
            f"The checkpoint {source} has NaN or infinity in {broken}: use one from before the run diverged."
        )


def find_non_finite(model: nn.Module) -> str | None:
    """The names of the tensors of a model that are not finite, as a message lists them, or None."""
    state = model.state_dict().items()
    numbers = {name: tensor for name, tensor in state if tensor.is_floating_point() and not tensor.is_meta}
    broken = sorted(name for name, tensor in numbers.items() if not torch.isfinite(tensor).all())
    return _some(broken) if broken else None


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown}, ... ({len(names)} tensors)"


__all__ = [
    "NEW_PARTS",
    "UnknownEncoderError",
    "check_complete",
    "check_encoder",
    "check_finite",
    "check_sizes",
    "find_non_finite",
    "match_log_variances",
    "naming",
    "naming_encoder",
    "read_encoder_config",
    "read_index",
]
