"""Low-rank adapters (LoRA, https://huggingface.co/papers/2106.09685) in the backbone, with peft.

Adapters exist during training only. Checkpoints store the merged weights under their usual names, so they load without
peft. The adapters themselves, which resuming needs, are stored in a separate file.
"""

from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.utils import is_peft_available

from ..models.modeling_dcal import DCALPreTrainedModel


# Not peft's file name: `from_pretrained` would load these adapters on top of weights that already contain them.
LORA_FILE = "lora.safetensors"
ADAPTER = "default"
# The output of the adapters is scaled by alpha / rank. Most recipes use 2 for any rank.
ALPHA_PER_RANK = 2
LORA_TARGETS = ("attention", "all")


def check_peft() -> None:
    """
    Raises:
        ImportError: If peft is not installed.
    """
    if not is_peft_available():
        raise ImportError('LoRA needs peft: pip install "dcal_hf[peft]"')


def add_lora(model: DCALPreTrainedModel, rank: int, targets: str = "attention") -> nn.Module:
    """Adds adapters to linear layers of the backbone, and freezes the rest of it.

    Args:
        rank (`int`): Rank of each adapter.
        targets (`str`):
            `"attention"`: the linear layers of each block's attention; `"all"`: also those of its FFN and of what runs
            with the block (Swin's patch merging).

    Returns:
        peft's `LoraModel` around the backbone; its `merge_and_unload` removes the adapters.
    """
    check_peft()
    from peft import LoraConfig, LoraModel

    dcal = model.base_model
    encoder = dcal.encoder
    parts = [encoder.parts(block) if targets == "all" else (encoder.attention(block),) for block in encoder.blocks]
    modules = [module for part in parts for root in part for module in root.modules()]
    adapted = {module for module in modules if isinstance(module, nn.Linear)}
    names = [name for name, module in dcal.backbone.named_modules() if module in adapted]
    config = LoraConfig(r=rank, lora_alpha=ALPHA_PER_RANK * rank, target_modules=names)
    return LoraModel(dcal.backbone, config, ADAPTER)


def adapted_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers with an adapter, by name."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def merged_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """State dict with the adapters merged: `W + alpha / rank B A` instead of `W`."""
    state = model.state_dict()
    for name, layer in adapted_layers(model).items():
        plain = layer.get_base_layer().state_dict()
        plain["weight"] = plain["weight"] + layer.get_delta_weight(ADAPTER)
        state = {key: value for key, value in state.items() if not key.startswith(f"{name}.")}
        state |= {f"{name}.{key}": value for key, value in plain.items()}
    return state


def save_adapted_layers(model: nn.Module, folder: str | Path) -> None:
    """Saves the layers with an adapter unmerged, because a merge cannot be undone bit for bit."""
    layers = adapted_layers(model).items()
    save_file(
        {f"{name}.{key}": value for name, layer in layers for key, value in layer.state_dict().items()},
        Path(folder, LORA_FILE),
    )


def with_adapted_layers(model: nn.Module, state: dict[str, Tensor], folder: str | Path) -> dict[str, Tensor]:
    """Replaces merged layers of a state dict by the unmerged ones that [`save_adapted_layers`] saved.

    Raises:
        FileNotFoundError: If the checkpoint was trained without LoRA.
        ValueError: If other layers have adapters in the checkpoint, or adapters of another rank.
    """
    file = Path(folder, LORA_FILE)
    if not file.is_file():
        raise FileNotFoundError(f"{folder} was trained without LoRA: to resume it, leave out lora_rank.")
    saved, adapted = load_file(file), adapted_layers(model)
    own = {f"{name}.{key}": value for name, layer in adapted.items() for key, value in layer.state_dict().items()}
    if {key: value.shape for key, value in saved.items()} != {key: value.shape for key, value in own.items()}:
        raise ValueError(
            f"{folder} was trained with other adapters: to resume it, give its lora_rank and lora_targets."
        )
    prefixes = tuple(f"{name}." for name in adapted)
    return {key: value for key, value in state.items() if not key.startswith(prefixes)} | saved


__all__ = ["LORA_TARGETS", "add_lora", "check_peft", "merged_state_dict", "save_adapted_layers", "with_adapted_layers"]
