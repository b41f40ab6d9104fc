"""Command lines of the recipes: dataclasses of arguments, and a configuration file that options override."""

import difflib
import json
import math
import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

import yaml
from registration import register_first
from transformers import HfArgumentParser

from dcal_hf.errors import one_line, reason_of


RECIPES = Path(__file__).parent
CONFIGURATIONS = RECIPES / "configs"
CONFIGURATION_SUFFIXES = (".yaml", ".yml", ".json")
MAX_PATH = 500
REGISTER_HELP = "Python file to run first, which registers encoders or pair strategies."


@dataclass
class HubArguments:
    """A trained DCAL checkpoint."""

    model_name_or_path: str = field(metadata={"help": "Hub ID or folder of a DCAL checkpoint."})
    cache_dir: str | None = field(default=None, metadata={"help": "Cache folder for downloads."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the model on the Hub."})
    token: str | None = field(default=None, metadata={"help": "Hub token; defaults to that of `hf auth login`."})
    register: str | None = field(default=None, metadata={"help": REGISTER_HELP})

    @property
    def hub_kwargs(self) -> dict[str, Any]:
        # Otherwise transformers asks on the terminal whether to run the code of a checkpoint.
        trust = {"trust_remote_code": False}
        return {"cache_dir": self.cache_dir, "revision": self.model_revision, "token": self.token, **trust}

    def loading_options(self) -> str:
        """The options of other commands that load the checkpoint."""
        return _loading_options(self.model_name_or_path, self.register)


@dataclass
class DCALOptions:
    """DCAL: options that are not given default to those of the checkpoint, or of `DCALConfig`."""

    attn_implementation: str | None = field(
        default=None, metadata={"help": "eager, sdpa or flash_attention_2; defaults to the best available."}
    )
    branches: list[str] | None = field(default=None, metadata={"help": "Branches to train: any of sa glca pwca."})
    inference_branches: list[str] | None = field(
        default=None, metadata={"help": "Branches to predict with: any of sa glca."}
    )
    num_glca_blocks: int | None = field(default=None, metadata={"help": "Number of GLCA blocks (M)."})
    num_pwca_blocks: int | None = field(default=None, metadata={"help": "Number of blocks that PWCA applies to (T)."})
    local_query_ratio: float | None = field(default=None, metadata={"help": "Fraction of patches GLCA selects (R)."})
    local_query_selection: str | None = field(
        default=None, metadata={"help": "rollout, last_layer, similarity or random."}
    )
    glca_scope: str | None = field(default=None, metadata={"help": "global or local keys and values for GLCA."})
    glca_readout: str | None = field(default=None, metadata={"help": "GLCA reads cls or local: the selected patches."})
    drop_path_rate: float | None = field(default=None, metadata={"help": "Stochastic depth rate of the last block."})
    loss_weighting: str | None = field(
        default=None, metadata={"help": "uncertainty (learned) or equal weights of the branch losses."}
    )
    initial_log_var: float | None = field(default=None, metadata={"help": "Initial log-variances of the losses."})


@dataclass
class ModelArguments(DCALOptions):
    """Model: the encoder or checkpoint.

    Also the licence of the weights, and `overwrite_output_dir`, which transformers removed from its arguments.
    """

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Hub ID or folder of a plain ViT, or of a DCAL checkpoint to fine-tune."}
    )
    backbone_config: str | None = field(
        default=None,
        metadata={"help": "New encoder to train, as JSON: '{\"model_type\": \"vit\", \"hidden_size\": 128, ...}'."},
    )
    image_size: list[int] | None = field(
        default=None, metadata={"help": "Input size in pixels: one number, or height and width."}
    )
    image_processor_name: str | None = field(
        default=None, metadata={"help": "Hub ID or folder of the image processor; defaults to the model's."}
    )
    cache_dir: str | None = field(default=None, metadata={"help": "Cache folder for downloads."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the model on the Hub."})
    token: str | None = field(default=None, metadata={"help": "Hub token; defaults to that of `hf auth login`."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Allow running code from a checkpoint."})
    register: str | None = field(default=None, metadata={"help": REGISTER_HELP})
    ignore_mismatched_sizes: bool = field(
        default=False,
        metadata={"help": "Replace the classes of a DCAL checkpoint; classes with the same name keep their weights."},
    )
    license: str | None = field(
        default=None,
        metadata={"help": "Licence of the weights for the model card, e.g. apache-2.0; none is claimed if not given."},
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Delete the checkpoints of an earlier run in --output_dir before training."}
    )

    def __post_init__(self):
        if self.model_name_or_path is None and self.backbone_config is None:
            raise ValueError(
                "Give either --model_name_or_path, to start from a checkpoint, or --backbone_config, to start "
                "from scratch."
            )
        if self.model_name_or_path is not None and self.backbone_config is not None:
            raise ValueError(
                "--backbone_config starts from scratch, and --model_name_or_path from a checkpoint: give only one of "
                "them."
            )
        self.backbone_fields = None
        if self.backbone_config is not None:
            self.backbone_fields = json_option("backbone_config", self.backbone_config, '{"model_type": "vit"}')
        if self.image_size is not None and (len(self.image_size) > 2 or min(self.image_size) < 1):
            raise ValueError(f"--image_size takes one or two numbers of pixels, got {self.image_size}.")

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

    def loading_options(self, trained_in: str | None) -> str:
        """The options of other commands that load the model: the one trained in a folder, or else the given one."""
        return _loading_options(trained_in or self.model_name_or_path, self.register)

    @property
    def dcal_kwargs(self) -> dict[str, Any]:
        """The options of `DCALConfig` that were given: the fields of base and derived classes."""
        names = {f.name for f in fields(self)} - ModelArguments.__annotations__.keys()
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


def _loading_options(name: str | None, register: str | None) -> str:
    """Quoted for a shell, because paths may have spaces."""
    options = {"--model_name_or_path": name, "--register": register}
    return shlex.join(text for option, value in options.items() if value is not None for text in (option, value))


class Parser(HfArgumentParser):
    """`HfArgumentParser` that answers a mistake with a sentence, and not with all options before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; --help lists the options.\n")


def parse_arguments(
    dataclass_types: tuple[type, ...], argv: list[str] | None = None, files: str | None = None
) -> tuple[Any, ...]:
    """Parses `[config.yaml | config.json] [--option value ...]`. Options override the file, which overrides its base.

    Args:
        dataclass_types: The dataclasses to parse into; one instance of each is returned.
        argv: The command line without the script's name; defaults to that of this process.
        files: Help text of positional file arguments. If given, they are allowed, and returned last as a list.

    Raises:
        FileNotFoundError: If the configuration file does not exist, or that of `--register`.
        ImportError: If the file of `--register` fails.
        ValueError: If the configuration is not a mapping, or an option of it is unknown or has an invalid value; the
            message names the file.
    """
    argv = with_home(sys.argv[1:] if argv is None else argv)
    is_configuration = bool(argv) and not argv[0].startswith("-")
    if files is not None:
        is_configuration = is_configuration and Path(argv[0]).suffix in CONFIGURATION_SUFFIXES
    parser = (_RaisingParser if is_configuration else Parser)(dataclass_types)
    if files is not None:
        parser.add_argument("files", nargs="*", help=files)
    if not is_configuration:
        register_first(argv)
        return _parsed(parser, argv, files)
    path = find_configuration(argv[0])
    options = with_home(options_of(path))
    register_first(options + argv[1:])
    try:
        return _parsed(parser, options + argv[1:], files)
    except (ValueError, TypeError) as error:
        reason = reason_of(error)
        raise ValueError(f"{origin_of(reason, path, options, argv[1:])}{reason}.") from error


def with_home(argv: Sequence[str]) -> list[str]:
    """Replaces a leading `~` of values: shells read no configurations, and bash leaves it in `--option=~/path`."""
    home = str(Path.home())
    return [re.sub(r"^(--[\w-]+=)?~(?=/|$)", lambda match: (match[1] or "") + home, text) for text in argv]


def origin_of(message: str, path: Path, options: Sequence[str], argv: Sequence[str]) -> str:
    """The start of an error message: the configuration, unless the first option or value named was given after it."""
    named = re.search(r"--\w+|(?<=')[^']+(?=')", message)
    if named is not None and named[0] in argv:
        return ""
    return f"{path}: " if named is not None and named[0] in options else f"{path}, or an option after it: "


class _RaisingParser(HfArgumentParser):
    """Raises the errors that argparse prints below the usage before it exits."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _parsed(parser: HfArgumentParser, argv: list[str], files: str | None) -> tuple[Any, ...]:
    _, unknown = parser.parse_known_args(argv)
    # Before the dataclasses, which may miss what a misspelt option was to give.
    if unknown:
        raise ValueError(unknown_option(unknown[0], list(parser._option_string_actions)))
    parsed = parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
    for group in parsed:
        if getattr(group, "output_dir", None) is not None:
            check_output_dir(Path(group.output_dir))
    return tuple(parsed) if files is None else (*parsed[:-1], parsed[-1].files)


def check_output_dir(folder: Path) -> None:
    """Finds, before hours of work, that an output folder cannot be written.

    Raises:
        NotADirectoryError: If it is a file, or below one.
        PermissionError: If it is not writable, or the folder that it would be created in.
    """
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise NotADirectoryError(f"--output_dir {folder}: {existing} is a file; give the path of a folder.")
    if not os.access(existing, os.W_OK):
        raise PermissionError(f"--output_dir {folder}: {existing} is not writable; give another folder.")


def require_at_least(minimum: float, args: Any, *names: str, at_most: float = math.inf) -> None:
    """
    Raises:
        ValueError: If one of these options is given and smaller, or larger than `at_most`.
    """
    limits = f"at least {minimum:g}" if at_most == math.inf else f"from {minimum:g} to {at_most:g}"
    for name in names:
        if getattr(args, name) is not None and not minimum <= getattr(args, name) <= at_most:  # NaN, too
            raise ValueError(f"--{name} {getattr(args, name)}: it must be {limits}.")


def json_option(name: str, text: str, example: str) -> dict[str, Any]:
    """Parses an option whose value is a JSON object.

    Raises:
        ValueError: If it is none.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"--{name} takes a JSON object, such as '{example}', not {text[:100]!r}.")
    return value


def unknown_option(name: str, known: Sequence[str]) -> str:
    """The message of an error, with options that are spelt alike."""
    if not name.startswith("--"):
        return f"'{name}' belongs to no option: options are --name value, after the configuration; --help lists all"
    word = name.removeprefix("--").replace("-", "_")
    # Options of several words exist with hyphens, too.
    spelt = [option for option in known if "-" not in option[2:]]
    alike = difflib.get_close_matches(f"--{word}", spelt, n=2, cutoff=0.75)
    alike += [option for option in spelt if word in option and option not in alike][:3]
    return f"there is no option {name}" + (f", but {' and '.join(alike)}" if alike else "; --help lists all")


def find_configuration(name: str, folder: Path = CONFIGURATIONS) -> Path:
    """Returns a path unchanged, and the path of a bundled configuration in `folder` for a bare name (`quickstart`).

    Raises:
        FileNotFoundError: If there is no configuration of that name.
    """
    path = Path(name)
    if path.suffix or len(path.parts) > 1:
        return path
    known = {own.stem: own for own in sorted(folder.glob("*.yaml"))}
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        others = f"give the path of a .yaml or .json file, or one of {', '.join(known)}."
        hint = f"did you mean '{close[0]}'?" if close else others
        raise FileNotFoundError(f"There is no configuration '{name}': {hint}")
    return known[name]


def options_of(path: Path) -> list[str]:
    """Converts a configuration file to command-line options: lists as several values, mappings as JSON, no nulls.

    Raises:
        FileNotFoundError, ValueError: As [`read_configuration`], and if a mapping cannot be written as JSON.
    """
    argv = []
    for name, value in read_configuration(path).items():
        if value is None:
            continue
        values = value if isinstance(value, list) else [value]
        try:
            # YAML reads a date as such.
            texts = [json.dumps(v, default=str) if isinstance(v, dict) else str(v) for v in values]
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {name} cannot be written as JSON: {reason_of(error)}.") from error
        argv += [f"--{name}", *texts]
    return argv


def read_configuration(path: Path, over: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Reads a configuration file. Its optional key `base` is the relative path of another one, which it overrides.

    Args:
        path (`Path`): The file.
        over (tuple of `Path`): The files that lead to it by their `base`, to detect a cycle.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it is not a mapping, cannot be read, repeats a key, or is its own base.
    """
    whose = f", the base of {over[-1]}," if over else ""
    if path.suffix not in CONFIGURATION_SUFFIXES:
        raise ValueError(f"'{path}'{whose} is no configuration: give an option or a .yaml or .json file first.")
    if not path.is_file():
        raise FileNotFoundError(f"The configuration file {path}{whose} does not exist.")
    try:
        # YAML reads a number without a dot, such as 1e-3, as a string; argparse parses it anyway.
        text = path.read_text(encoding="utf-8-sig")
        options = json.loads(text, object_pairs_hook=_unique) if path.suffix == ".json" else yaml.load(text, _Loader)
    except (ValueError, TypeError, AttributeError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"The configuration file {path} cannot be read: {reason_of(error)}.") from error
    if not isinstance(options, dict):
        raise ValueError(f"{path} must hold a mapping of option names to values.")
    base = options.pop("base", None)
    if base is None:
        return options
    if not isinstance(base, str) or not base.isprintable() or len(base) > MAX_PATH:
        raise ValueError(f"{path} has the base {one_line(repr(base))}: it must be the path of another configuration.")
    over = (*over, path.resolve())
    if (path.parent / base).resolve() in over:
        raise ValueError(f"{path} has the base {base}, which leads back to {path.name}: give another base, or none.")
    return read_configuration(path.parent / base, over) | options


class _Loader(yaml.SafeLoader):
    """Rejects aliases, with which a small file can exhaust memory, and repeated keys."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.composer.ComposerError(
                None, None, f"the alias *{event.anchor} is not supported: repeat the value", event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        _unique([(key.value, None) for key, _ in node.value])
        return super().construct_mapping(node, deep)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in mapping if keys.count(key) > 1)} occurs twice")
    return mapping
