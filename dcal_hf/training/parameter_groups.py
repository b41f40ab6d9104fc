"""Parameter groups of the optimiser: weight decay and layer-wise learning rates."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from ..models.modeling_dcal import DCALPreTrainedModel


@dataclass
class ParameterGroup:
    """
    Args:
        parameters (`list` of `nn.Parameter`): The parameters, in the order of the model.
        scale (`float`): Factor of the learning rate.
        kind (`str`): Kind of parameter that the optimiser treats differently, such as `"bias"`; empty for all others.
    """

    parameters: list[nn.Parameter]
    scale: float
    kind: str


def weight_matrix_names(model: nn.Module) -> list[str]:
    """Names of the parameters with weight decay: the weights of linear layers and convolutions.

    They are found by module type, so that no encoder family needs a list of names. Biases, norms, necks, tokens,
    positions, layer scales and log-variances have no decay, as in DeiT (`no_weight_decay` and timm's rule for
    parameters of one dimension).
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
    """Groups the trainable parameters by learning rate and kind.

    The learning rate of depth d is scaled by `layer_decay ** (L + 1 - d)`, as in fine-tuning of BEiT and MAE
    (https://huggingface.co/papers/2111.06377, appendix A.1). Groups are sorted by decreasing rate, because the Trainer
    logs that of the first group, and then by kind, with no kind first. The order is deterministic, because the state
    of an optimiser is saved by group.

    Args:
        kinds (`Mapping[str, str]`): Kind of the parameters that the optimiser treats differently, by parameter name.
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
