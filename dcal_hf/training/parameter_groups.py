"""Which parameters an optimiser moves, and how far: weight decay, learning rates by depth."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from ..models.modeling_dcal import DCALPreTrainedModel


@dataclass
class ParameterGroup:
    """
    Args:
        parameters (`list` of `nn.Parameter`): In the model's order.
        scale (`float`): Share of the learning rate that they get.
        kind (`str`): What the optimiser treats in another way (`"bias"`, say); empty for all else.
    """

    parameters: list[nn.Parameter]
    scale: float
    kind: str


def weight_matrix_names(model: nn.Module) -> list[str]:
    """Names of the weights of linear layers and convolutions: what weight decay is for.

    By type, so that no family of encoders needs a list of names: biases, norms, necks, tokens, positions, layer scales
    and log-variances are left, as in DeiT (`no_weight_decay` and timm's rule for parameters of one dimension).
    """
    return [f"{name}.weight" for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]


def parameter_depths(model: DCALPreTrainedModel) -> dict[nn.Parameter, int]:
    """Depth of each parameter: 0 before the blocks, 1 to L in them, L + 1 for the final norm, GLCA, necks and heads.

    The numbering of BEiT and MAE (`get_num_layer_for_vit` of https://github.com/microsoft/unilm/tree/master/beit).
    """
    dcal = model.base_model
    blocks = dcal.encoder.blocks
    last = len(blocks) + 1
    depths = dict.fromkeys(model.parameters(), last)
    depths |= dict.fromkeys(dcal.backbone.parameters(), 0)
    depths |= dict.fromkeys(dcal.encoder.final_norm.parameters(), last)
    for depth, block in enumerate(blocks, start=1):
        for part in dcal.encoder.parts(block):
            depths |= dict.fromkeys(part.parameters(), depth)
    return depths


def parameter_groups(
    model: DCALPreTrainedModel, kinds: Mapping[str, str], layer_decay: float
) -> list[ParameterGroup]:
    """The trained parameters, apart by depth and by kind.

    The learning rate of depth d is scaled by `layer_decay ** (L + 1 - d)`, as BEiT and MAE fine-tune
    (https://huggingface.co/papers/2111.06377, appendix A.1); with a layer decay of 1 there is one depth. The full rate
    comes first, because the Trainer logs that of the first group; of one depth those of no kind come first. The order
    is always the same, because the states of an optimiser are saved by it.

    Args:
        kinds (`Mapping[str, str]`): By their names, the parameters that the optimiser treats in another way.
    """
    depths = parameter_depths(model)
    last = max(depths.values())
    groups = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[layer_decay ** (last - depths[parameter]), kinds.get(name, "")].append(parameter)
    keys = sorted(groups, key=lambda key: (-key[0], key[1]))
    return [ParameterGroup(groups[scale, kind], scale, kind) for scale, kind in keys]


__all__ = ["ParameterGroup", "parameter_depths", "parameter_groups", "weight_matrix_names"]
