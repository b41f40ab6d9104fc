"""FLOPs that DCAL on a ViT cannot do without, counted on paper: per image, a multiplication and an addition are two.

Matrix products only, as `torch.utils.flop_counter` counts; the test beside this file holds the two equal. N tokens,
P patches, R local queries, width D, MLP width F, H heads, L blocks, T of them with a PWCA twin, C classes.
"""

from dataclasses import dataclass

from dcal_hf import DCALConfig
from dcal_hf.models.configuration_dcal import as_pair


@dataclass(frozen=True)
class Sizes:
    """What the formulas need of a configuration; `pixels` is the number of values in a patch."""

    tokens: int
    patches: int
    local: int
    width: int
    hidden: int
    heads: int
    layers: int
    pixels: int
    classes: int

    @classmethod
    def of(cls, config: DCALConfig) -> "Sizes":
        encoder, (rows, columns) = config.backbone_config, config.grid
        patch_height, patch_width = as_pair(encoder.patch_size)
        return cls(
            tokens=rows * columns + config.adapter.count_prefix_tokens(encoder),
            patches=rows * columns,
            local=config.num_local_queries,
            width=encoder.hidden_size,
            hidden=encoder.intermediate_size,
            heads=encoder.num_attention_heads,
            layers=config.num_layers,
            pixels=patch_height * patch_width * encoder.num_channels,
            classes=config.num_labels,
        )


def linear(rows: int, inputs: int, outputs: int) -> int:
    return 2 * rows * inputs * outputs


def attention(queries: int, keys: int, width: int) -> int:
    """Scores and weighted values: `4 queries keys D`, whatever the number of heads."""
    return 4 * queries * keys * width


def stem(size: Sizes) -> int:
    """The convolution: `2 P pixels D`."""
    return linear(size.patches, size.pixels, size.width)


def block(size: Sizes, queries: int, tokens: int, keys: int) -> int:
    """Queries and output projection of `queries`, keys and values of `tokens`, attention over `keys`, the MLP:
    `4 queries D² + 4 tokens D² + 4 queries keys D + 4 queries D F`."""
    projections = linear(2 * queries + 2 * tokens, size.width, size.width)
    return projections + attention(queries, keys, size.width) + 2 * linear(queries, size.width, size.hidden)


def sa_block(size: Sizes) -> int:
    return block(size, size.tokens, size.tokens, size.tokens)


def pwca_block(size: Sizes, queries: int) -> int:
    """The keys of two images; those of the second one are its own branch's, so nothing else doubles."""
    return block(size, queries, size.tokens, 2 * size.tokens)


def pwca(size: Sizes, blocks: int) -> int:
    """All tokens, but for the last block, of which CLS alone is read."""
    return (blocks - 1) * pwca_block(size, size.tokens) + pwca_block(size, 1)


def glca_block(size: Sizes, queries: int) -> int:
    return block(size, queries, size.tokens, size.tokens)


def rollout_block(size: Sizes, queries: int) -> int:
    """Scores once more, and a vector times each head's attention: `2 queries N D + 2 H queries N`."""
    return 2 * queries * size.tokens * (size.width + size.heads)


def rollout(size: Sizes) -> int:
    """Of the last block CLS's row alone; of each block below, all rows."""
    return rollout_block(size, 1) + (size.layers - 1) * rollout_block(size, size.tokens)


def forward_parts(config: DCALConfig, training: bool) -> dict[str, int]:
    """FLOPs of one image's way through the branches that run, part by part."""
    size, branches = Sizes.of(config), config.branches if training else config.inference_branches
    head = linear(1, size.width, size.classes)
    parts = {"stem": stem(size), "sa": size.layers * sa_block(size) + head}
    if training and config.uses_pwca:
        parts["pwca"] = pwca(size, config.num_pwca_blocks) + head
    if "glca" in branches:
        queries = size.local if config.glca_readout == "local" else 1
        parts["glca"] = config.num_glca_blocks * glca_block(size, queries) + head
        if config.reads_local_queries and config.local_query_selection == "rollout":
            parts["rollout"] = rollout(size)
    return parts


def inference_flops(config: DCALConfig) -> int:
    return sum(forward_parts(config, training=False).values())


def training_flops(config: DCALConfig, pwca_fraction: float = 1.0) -> float:
    """Backward is twice the forward, except for the stem (no gradient for pixels) and the rollout (none at all).

    Args:
        pwca_fraction (`float`): Share of the images that PWCA runs for.
    """
    passes = {"stem": 2, "rollout": 1, "pwca": 3 * pwca_fraction}
    return sum(passes.get(name, 3) * flops for name, flops in forward_parts(config, training=True).items())
