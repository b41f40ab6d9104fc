"""Prints `--help` from the source code of the argument classes, because importing them takes seconds (torch).

A recipe lists its argument classes as ARGUMENTS, a tuple, or a dictionary with a tuple per subcommand. Each class is a
group of options, titled by the first sentence of its docstring; an option that a subclass declares again is in the
subclass's group only. POSITIONAL, if there, is the name and the help of the positional arguments.
"""

import ast
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any


RECIPES = Path(__file__).parent
WIDTH = 100
OPTION_WIDTH = 34
CONFIGURATION_HELP = "A YAML or JSON file of options, or the name of a bundled one; options after it take precedence."
# Modules whose names transformers resolves when they are used.
_LAZY = {"TrainingArguments": "transformers.training_args"}
_TITLES = {
    "DCALReIDTrainingArguments": "Re-identification training",
    "DCALTrainingArguments": "DCAL training",
    "TrainingArguments": "All other options of the Trainer of transformers",
}
# The options of transformers that most runs set.
USUAL = (
    "output_dir do_train do_eval do_predict eval_strategy save_strategy save_total_limit load_best_model_at_end "
    "metric_for_best_model resume_from_checkpoint per_device_eval_batch_size gradient_accumulation_steps bf16 seed "
    "dataloader_num_workers use_cpu push_to_hub"
).split()
_VALUES = {"str": "TEXT", "int": "INTEGER", "float": "NUMBER", "dict": "JSON"}


@dataclass(frozen=True)
class Option:
    """An option of the command line.

    Args:
        name (`str`): The name of the field.
        values (`str`): Its values; empty for a flag.
        default (`Any`): The default; None also if the source does not show it.
    """

    name: str
    values: str
    required: bool
    default: Any
    help: str


def help_text(
    recipe: Path, command: str, subcommand: str | None = None, names: Mapping[str, str] | None = None
) -> str:
    """The help of a recipe.

    Args:
        recipe (`Path`): The script.
        command (`str`): The command that runs it.
        subcommand (`str`, *optional*): A key of its ARGUMENTS; without it, these are listed.
        names (mapping from `str` to `str`, *optional*): The commands of `dcal` by the script that each runs, to show
            them in place of the scripts.
    """
    _, arguments = _find(recipe, "ARGUMENTS")
    description = _wrapped(as_typed(ast.get_docstring(_parse(recipe)), names))
    if isinstance(arguments, ast.Dict):
        known = [key.value for key in arguments.keys]
        if subcommand not in known:
            return f"usage: {command} {{{','.join(known)}}} [--option value ...]\n\n{description}\n"
        arguments, command = arguments.values[known.index(subcommand)], f"{command} {subcommand}"
    sections = [group for element in arguments.elts for group in option_groups(recipe, element.id)]
    required = [f"--{option.name} {option.values}" for _, options in sections for option in options if option.required]
    try:
        name, explanation = _value(_find(recipe, "POSITIONAL")[1], recipe)
    except KeyError:
        name, explanation = "[CONFIGURATION]", CONFIGURATION_HELP
    usage = textwrap.fill(
        " ".join([f"usage: {command}", name, *required, "[--option value ...]"]), WIDTH, subsequent_indent="    ",
        break_on_hyphens=False,
    )
    lines = [usage, "", description, "", *_columns(f"  {name}", explanation)]
    for title, options in sections:
        lines += ["", f"{title}:", *(line for option in options for line in _lines(option, names))]
    return "\n".join(lines) + "\n"


def as_typed(text: str, names: Mapping[str, str] | None) -> str:
    """Replaces scripts in a text by the commands of `dcal`, if these are given, and configurations by their names."""
    if names is None:
        return text
    scripts = rf"recipes/({'|'.join(names)})\.py\b"
    text = re.sub(rf"(accelerate launch[^\n]*?) {scripts}", lambda m: f"{m[1]} --no_python dcal {names[m[2]]}", text)
    text = re.sub(rf"(?:python )?{scripts}", lambda m: f"dcal {names[m[1]]}", text)
    return re.sub(r"recipes/(?:configs|ablations)/(\w+)\.yaml", r"\1", text)


def _wrapped(text: str) -> str:
    """The paragraphs of a docstring, but for indented ones, whose lines Python has joined where they end in `\\`.

    Wide spaces before a comment are not such a place.
    """
    paragraphs = text.split("\n\n")
    return "\n\n".join(
        re.sub(r"(?<=\S) {4,}(?![ #])", " \\\\\n        ", paragraph)
        if paragraph.startswith(" ")
        else textwrap.fill(" ".join(paragraph.split()), WIDTH, break_on_hyphens=False)
        for paragraph in paragraphs
    )


def _lines(option: Option, names: Mapping[str, str] | None) -> list[str]:
    head = f"  --{option.name} {option.values}".rstrip()
    if option.default is True:
        head += f", --no_{option.name}"
    text = as_typed(option.help, names)
    if option.required:
        text = f"(required) {text}"
    elif option.default not in (None, False, "", "{}") and "default" not in text:
        default = f"{option.default:g}" if isinstance(option.default, float) else option.default
        text = f"{text} [default: {default}]"
    return _columns(head, text)


def _columns(head: str, text: str) -> list[str]:
    """A name and its explanation beside it, or below if the name is long."""
    first, *rest = textwrap.wrap(text, WIDTH - OPTION_WIDTH, break_on_hyphens=False) or [""]
    indented = [" " * OPTION_WIDTH + line for line in (first, *rest)]
    if len(head) >= OPTION_WIDTH:
        return [head, *indented]
    return [f"{head:<{OPTION_WIDTH}}{first}", *indented[1:]]


def option_groups(path: Path, name: str) -> list[tuple[str, list[Option]]]:
    """The groups of a class and its base classes, the most derived first."""
    groups, known = [], set()
    for place, node in _with_bases(path, name):
        fields = [statement for statement in node.body if isinstance(statement, ast.AnnAssign)]
        options = [_option(field, place) for field in fields if field.target.id not in known and _is_option(field)]
        known |= {field.target.id for field in fields}
        usual = [option for option in options if node.name == "TrainingArguments" and option.name in USUAL]
        if usual:
            groups.append(("Training", sorted(usual, key=lambda option: USUAL.index(option.name))))
            options = [option for option in options if option not in usual]
        if options:
            title = (ast.get_docstring(node) or name).split("\n")[0].rstrip(".")
            groups.append((_TITLES.get(node.name, title), options))
    return groups


def _with_bases(path: Path, name: str) -> list[tuple[Path, ast.ClassDef]]:
    path, node = _find(path, name)
    bases = [pair for base in node.bases if isinstance(base, ast.Name) for pair in _with_bases(path, base.id)]
    return [(path, node), *bases]


def _is_option(field: ast.AnnAssign) -> bool:
    return not any(keyword.arg == "init" and not keyword.value.value for keyword in _keywords(field))


def _keywords(field: ast.AnnAssign) -> Sequence[ast.keyword]:
    return field.value.keywords if isinstance(field.value, ast.Call) else ()


def _option(field: ast.AnnAssign, path: Path) -> Option:
    keywords = {keyword.arg: keyword.value for keyword in _keywords(field)}
    metadata = {}
    if "metadata" in keywords:
        pairs = zip(keywords["metadata"].keys, keywords["metadata"].values)
        metadata = {key.value: _value(value, path) for key, value in pairs}
    source = field.value if not isinstance(field.value, ast.Call) else keywords.get("default")
    required = source is None and "default_factory" not in keywords
    default = None if source is None else _value(source, path)
    return Option(
        name=field.target.id,
        values=_values(field.annotation, metadata.get("choices"), path),
        required=required and ast.unparse(field.annotation) != "bool",
        default=default,
        help=" ".join(str(metadata.get("help", "")).split()),
    )


def _values(annotation: ast.expr, choices: Sequence[str] | None, path: Path) -> str:
    parts = [part.strip() for part in ast.unparse(annotation).split(" | ") if part != "None"]
    if parts[0].startswith("Literal["):
        choices = _value(ast.parse(parts[0]).body[0].value.slice, path)
    if choices is not None:
        return f"{{{','.join(map(str, choices))}}}"
    if "bool" in parts:
        return ""
    if parts[0].startswith("list["):
        return f"{_VALUES.get(parts[0][5:-1], 'TEXT')} ..."
    return _VALUES.get(next((part for part in parts if part in ("int", "float")), parts[0]), "TEXT")


def _value(node: ast.expr, path: Path) -> Any:
    """The value of an expression of literals, arithmetic and names of such; None if it is another one."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        pass
    if isinstance(node, ast.Name):
        try:
            place, value = _find(path, node.id)
        except KeyError:
            return None
        return _value(value, place)
    if isinstance(node, ast.JoinedStr):
        parts = (part if isinstance(part, ast.Constant) else part.value for part in node.values)
        return "".join(str(_value(part, path)) for part in parts)
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("list", "tuple"):
        return list(_value(node.args[0], path))
    if isinstance(node, ast.BinOp) and not any(isinstance(part, (ast.Name, ast.Call)) for part in ast.walk(node)):
        return eval(compile(ast.Expression(node), str(path), "eval"))  # of numbers
    return None


def _find(path: Path, name: str) -> tuple[Path, Any]:
    """Where a class or a value is defined, following imports, and its node.

    Raises:
        KeyError: If it is not found.
    """
    for node in _parse(path).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return path, node
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(getattr(target, "id", None) == name for target in targets):
            return path, node.value
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if name == (alias.asname or alias.name):
                    return _find(_module(node, path, alias.name), alias.name)
    raise KeyError(name)


def _module(node: ast.ImportFrom, path: Path, name: str) -> Path:
    """The file of a module in an import statement."""
    if node.level:
        folder = path.parents[node.level - 1]
        parts = (node.module or "").split(".")
    else:
        top, *parts = _LAZY.get(name, node.module).split(".")
        own = RECIPES / f"{top}.py"
        if own.exists():
            return own
        spec = find_spec(top)
        if spec is None or not spec.submodule_search_locations:
            raise KeyError(name)
        folder = Path(spec.submodule_search_locations[0])
    target = folder.joinpath(*filter(None, parts))
    return target / "__init__.py" if target.is_dir() else target.with_suffix(".py")


@cache
def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))
