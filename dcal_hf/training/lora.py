"""Low-rank adapters (LoRA, https://huggingface.co/papers/2106.09685) in the backbone, by peft.

They live as long as training does. Every checkpoint holds the adapted weights under their plain names, so it loads
like any other, without peft; what resuming needs beside it lies in a file of its own.
"""

from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.utils import is_peft_available

from ..models.modeling_dcal import DCALPreTrainedModel


# Not peft's own name: `from_pretrained` would put what it finds there on weights that hold it already.
LORA_FILE = "lora.safetensors"
ADAPTER = "default"
# The adapters' output counts alpha / rank times: 2 is what most recipes take, whatever the rank.
ALPHA_PER_RANK = 2


def check_peft() -> None:
    """
    Raises:
        ImportError: If peft is not installed.
    """
    if not is_peft_available():
        raise ImportError('LoRA needs peft: pip install "dcal_hf[peft]"')


def add_lora(model: DCALPreTrainedModel, rank: int) -> nn.Module:
    """Puts adapters on the linear layers of the backbone's attention, and freezes all else in the backbone.

    Args:
        rank (`int`): Of each adapter.

    Returns:
        peft's `LoraModel`, of which the backbone is a part; its `merge_and_unload` ends it.
    """
    check_peft()
    from peft import LoraConfig, LoraModel

    dcal = model.base_model
    attentions = [dcal.encoder.attention(block) for block in dcal.encoder.blocks]
    adapted = {layer for attention in attentions for layer in attention.modules() if isinstance(layer, nn.Linear)}
    names = [name for name, module in dcal.backbone.named_modules() if module in adapted]
    config = LoraConfig(r=rank, lora_alpha=ALPHA_PER_RANK * rank, target_modules=names)
    return LoraModel(dcal.backbone, config, ADAPTER)


def adapted_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that have an adapter, by name."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def merged_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The weights of a model with adapters, as those of a plain one: `W + alpha / rank B A` in the place of `W`."""
    state = model.state_dict()
    for name, layer in adapted_layers(model).items():
        plain = layer.get_base_layer().state_dict()
        plain["weight"] = plain["weight"] + layer.get_delta_weight(ADAPTER)
        state = {key: value for key, value in state.items() if not key.startswith(f"{name}.")}
        state |= {f"{name}.{key}": value for key, value in plain.items()}
    return state


def save_adapted_layers(model: nn.Module, folder: str | Path) -> None:
    """Writes the layers that have an adapter, before the merge: it could not be undone to the last bit."""
    layers = adapted_layers(model).items()
    save_file(
        {f"{name}.{key}": value for name, layer in layers for key, value in layer.state_dict().items()},
        Path(folder, LORA_FILE),
    )


def with_adapted_layers(model: nn.Module, state: dict[str, Tensor], folder: str | Path) -> dict[str, Tensor]:
    """The state dict of a plain model, with the layers that have an adapter as [`save_adapted_layers`] wrote them.

    Raises:
        FileNotFoundError: If that checkpoint was trained without LoRA.
    """
    file = Path(folder, LORA_FILE)
    if not file.is_file():
        raise FileNotFoundError(f"{folder} was trained without LoRA: it cannot be gone on from with lora_rank.")
    prefixes = tuple(f"{name}." for name in adapted_layers(model))
    return {key: value for key, value in state.items() if not key.startswith(prefixes)} | load_file(file)


__all__ = ["add_lora", "check_peft", "merged_state_dict", "save_adapted_layers", "with_adapted_layers"]
