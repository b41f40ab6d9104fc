"""Formulas of the necessary FLOPs of DCAL on a ViT per image; a multiplication and an addition are two FLOPs.

They include only matrix products, like `torch.utils.flop_counter`; a test checks that both agree.
"""

from dcal_hf import DCALConfig
from dcal_hf.models.positions_dcal import as_pair


def linear(rows: int, inputs: int, outputs: int) -> int:
    return 2 * rows * inputs * outputs


def block_flops(queries: int, tokens: int, keys: int, width: int, hidden: int) -> int:
    """Query and output projections of `queries`, keys and values of `tokens`, attention over `keys`, and the MLP:
    `4 queries D² + 4 tokens D² + 4 queries keys D + 4 queries D F`."""
    projections = linear(2 * queries + 2 * tokens, width, width)
    return projections + 4 * queries * keys * width + 2 * linear(queries, width, hidden)


def rollout_flops(queries: int, tokens: int, width: int, heads: int) -> int:
    """The scores again, and a vector times the attention of each head: `2 queries N D + 2 H queries N`."""
    return 2 * queries * tokens * (width + heads)


def forward_parts(config: DCALConfig, training: bool) -> dict[str, int]:
    """FLOPs of one image in the forward of the branches that run, by part."""
    encoder, (rows, columns) = config.backbone_config, config.grid
    width, layers, (patch_height, patch_width) = encoder.hidden_size, config.num_layers, as_pair(encoder.patch_size)
    tokens = rows * columns + config.adapter.count_prefix_tokens(encoder)

    def block(queries: int, keys: int) -> int:
        return block_flops(queries, tokens, keys, width, encoder.intermediate_size)

    head = linear(1, width, config.num_labels)
    pixels = patch_height * patch_width * encoder.num_channels
    parts = {"stem": linear(rows * columns, pixels, width), "sa": layers * block(tokens, tokens) + head}
    if training and config.uses_pwca:
        # Keys of two images; the second image projects its own. The last block runs for CLS only.
        parts["pwca"] = (config.num_pwca_blocks - 1) * block(tokens, 2 * tokens) + block(1, 2 * tokens) + head
    if "glca" in (config.branches if training else config.inference_branches):
        queries = config.num_local_queries if config.glca_readout == "local" else 1
        parts["glca"] = config.num_glca_blocks * block(queries, tokens) + head
        if config.reads_local_queries and config.local_query_selection == "rollout":
            # Only the CLS row of the last block, and all rows of the blocks before.
            read_rows = 1 + (layers - 1) * tokens
            parts["rollout"] = rollout_flops(read_rows, tokens, width, encoder.num_attention_heads)
    return parts


def inference_flops(config: DCALConfig) -> int:
    return sum(forward_parts(config, training=False).values())


def training_flops(config: DCALConfig, pwca_fraction: float = 1.0) -> float:
    """Backward is twice the forward, except for the stem (no gradient for pixels) and the rollout (none at all).

    Args:
        pwca_fraction (`float`): Fraction of the images that PWCA runs for.
    """
    passes = {"stem": 2, "rollout": 1, "pwca": 3 * pwca_fraction}
    return sum(passes.get(name, 3) * flops for name, flops in forward_parts(config, training=True).items())
