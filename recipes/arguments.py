"""Command lines of the recipes: dataclasses, and a configuration file with overrides behind it."""

import json
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser


CONFIGURATIONS = Path(__file__).parent / "configs"
CONFIGURATION_SUFFIXES = (".yaml", ".yml", ".json")


@dataclass
class ModelArguments:
    """Which encoder, and how DCAL is put on it. What is not given is left to `DCALConfig` or to the checkpoint.

    Also the licence of what comes of it, and what becomes of an earlier run's checkpoints.
    """

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Hub id or folder of a plain ViT, or of a DCAL checkpoint to go on from."}
    )
    backbone_config: str | None = field(
        default=None,
        metadata={"help": "An encoder from scratch, as JSON: '{\"model_type\": \"vit\", \"hidden_size\": 128, ...}'."},
    )
    image_size: list[int] | None = field(
        default=None, metadata={"help": "Input size in pixels: one number, or height and width."}
    )
    image_processor_name: str | None = field(
        default=None, metadata={"help": "Hub id or folder of the image processor, if not the model's."}
    )
    cache_dir: str | None = field(default=None, metadata={"help": "Where downloads are kept."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the model on the Hub."})
    token: str | None = field(default=None, metadata={"help": "Hub token; the one of `hf auth login` if not given."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with a checkpoint."})
    ignore_mismatched_sizes: bool = field(
        default=False,
        metadata={"help": "The data set's classes take the place of a DCAL checkpoint's; those it knows go on."},
    )
    license: str | None = field(
        default=None,
        metadata={"help": "Licence of the weights for the model card, e.g. apache-2.0; none is claimed if not given."},
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Delete the checkpoints that an earlier run left in --output_dir, and train."}
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "eager, sdpa or flash_attention_2; the best there is if not given."}
    )
    branches: list[str] | None = field(default=None, metadata={"help": "Branches to train: any of sa glca pwca."})
    inference_branches: list[str] | None = field(
        default=None, metadata={"help": "Branches to predict with: any of sa glca."}
    )
    num_glca_blocks: int | None = field(default=None, metadata={"help": "M, the number of GLCA blocks."})
    num_pwca_blocks: int | None = field(default=None, metadata={"help": "T, the number of blocks with a PWCA twin."})
    local_query_ratio: float | None = field(default=None, metadata={"help": "R, the share of patches GLCA keeps."})
    local_query_selection: str | None = field(
        default=None, metadata={"help": "rollout, last_layer, similarity or random."}
    )
    glca_scope: str | None = field(default=None, metadata={"help": "global or local keys and values for GLCA."})
    glca_readout: str | None = field(default=None, metadata={"help": "local or cls readout of GLCA."})
    drop_path_rate: float | None = field(default=None, metadata={"help": "Stochastic depth at the last block."})
    initial_log_var: float | None = field(default=None, metadata={"help": "Start of the losses' log-variances."})

    def __post_init__(self):
        if (self.model_name_or_path is None) == (self.backbone_config is None):
            raise ValueError(
                "Give either --model_name_or_path, to start from a checkpoint, or --backbone_config, to start "
                "from scratch."
            )
        if self.image_size is not None and len(self.image_size) > 2:
            raise ValueError(f"--image_size takes one or two numbers, got {self.image_size}.")

    @property
    def input_size(self) -> int | tuple[int, int] | None:
        if self.image_size is None or len(self.image_size) == 2:
            return self.image_size and tuple(self.image_size)
        return self.image_size[0]

    @property
    def hub_kwargs(self) -> dict[str, Any]:
        return {
            "cache_dir": self.cache_dir,
            "revision": self.model_revision,
            "token": self.token,
            "trust_remote_code": self.trust_remote_code,
        }

    @property
    def dcal_kwargs(self) -> dict[str, Any]:
        """The given ones among the fields behind `attn_implementation`, that one included."""
        names = [f.name for f in fields(self)]
        names = names[names.index("attn_implementation"):]
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


def parse_arguments(
    dataclass_types: tuple[type, ...], argv: list[str] | None = None, files: str | None = None
) -> tuple[Any, ...]:
    """Parses `[config.yaml | config.json] [--option value ...]`; options win over the file, and it over its base.

    Args:
        dataclass_types: What is returned, each an object of its class.
        argv: The command line, without the name of the script; that of this process if not given.
        files: What the files are that may stand without an option, for `--help`; a list of their names comes last.

    Raises:
        FileNotFoundError: If the configuration file does not exist.
        ValueError: If it is no mapping, or an option is unknown.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = HfArgumentParser(dataclass_types)
    is_configuration = bool(argv) and not argv[0].startswith("-")
    if files is not None:
        parser.add_argument("files", nargs="*", help=files)
        is_configuration = is_configuration and Path(argv[0]).suffix in CONFIGURATION_SUFFIXES
    if is_configuration:
        argv = options_of(find_configuration(argv[0])) + argv[1:]
    *parsed, last = parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
    return (*parsed, last if files is None else last.files)


def find_configuration(name: str) -> Path:
    """A path as it is; a bare name is that of a configuration that comes along, `quickstart` say.

    Raises:
        FileNotFoundError: If there is none of that name.
    """
    path = Path(name)
    if path.suffix or len(path.parts) > 1:
        return path
    known = {own.stem: own for own in sorted(CONFIGURATIONS.glob("*.yaml"))}
    if name not in known:
        raise FileNotFoundError(
            f"There is no configuration '{name}': give the path of a .yaml or .json file, or one of "
            f"{', '.join(known)}."
        )
    return known[name]


def options_of(path: Path) -> list[str]:
    """A configuration file as command-line options: lists spelled out, mappings as JSON, nulls left out."""
    argv = []
    for name, value in read_configuration(path).items():
        if value is None:
            continue
        values = value if isinstance(value, list) else [value]
        argv += [f"--{name}", *(json.dumps(v) if isinstance(v, dict) else str(v) for v in values)]
    return argv


def read_configuration(path: Path, over: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Reads a configuration file, over the one that its key `base` names, if any, as a path from its own folder.

    Args:
        path (`Path`): The file.
        over (tuple of `Path`): The files that it is the base of.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no mapping, cannot be read, repeats a key, or is its own base.
    """
    if path.suffix not in CONFIGURATION_SUFFIXES:
        raise ValueError(f"'{path}' is no configuration: the first argument is an option or a .yaml or .json file.")
    if not path.is_file():
        raise FileNotFoundError(f"The configuration file {path} does not exist.")
    try:
        # A number such as 1e-3, without a dot, is text to YAML; argparse reads it all the same.
        text = path.read_text(encoding="utf-8")
        options = json.loads(text, object_pairs_hook=_unique) if path.suffix == ".json" else yaml.load(text, _Loader)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"The configuration file {path} cannot be read: {reason}.") from error
    if not isinstance(options, dict):
        raise ValueError(f"{path} must hold a mapping of option names to values.")
    base = options.pop("base", None)
    if base is None:
        return options
    if not isinstance(base, str):
        raise ValueError(f"{path} has the base {base!r}: it must be the path of another configuration.")
    over = (*over, path.resolve())
    if (path.parent / base).resolve() in over:
        raise ValueError(f"{path} has the base {base}, which goes over {path.name} itself: name another, or none.")
    return read_configuration(path.parent / base, over) | options


class _Loader(yaml.SafeLoader):
    """YAML without aliases, by which a small file grows beyond memory, and with each key once."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.composer.ComposerError(
                None, None, f"the alias *{event.anchor} is not read, write its value out", event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        _unique([(key.value, None) for key, _ in node.value])
        return super().construct_mapping(node, deep)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in mapping if keys.count(key) > 1)} is there twice")
    return mapping
