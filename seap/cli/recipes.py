"""Recipes: files with the options of one or more commands, checked with line numbers before anything runs.

    steps:
      - prune: {model: ./my-model, task: [tickets=tickets.jsonl], sparsity: 50%, out: small}
      - export: {model: small, to: gguf, out: small.gguf}

A `--config` file is the mapping of one command alone. YAML is read without its guesses: a value is the text that stands
there, as on a command line; true and false are for flags.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from cyclopts import CycloptsError

from seap.cli.app import app
from seap.cli.words import Command, Value, command_of, names_of_commands
from seap.errors import UserError, first_line, unknown

LARGEST = 1 << 20  # bytes
TRUTH = "tag:yaml.org,2002:bool"
NOTHING = "tag:yaml.org,2002:null"


@dataclass(frozen=True)
class Step:
    """One command with its options, and where in the file they stand."""

    command: Command
    values: dict[str, Value]
    path: Path
    line: int
    lines: dict[str, int] = field(default_factory=dict)

    @property
    def words(self) -> list[str]:
        return self.command.words(self.values)

    def has(self, key: str) -> bool:
        return key in self.command.options

    def wrong(self, error: Exception) -> UserError:
        """What is wrong with the step, with the line of the option that the message names."""
        text = str(error)
        named = getattr(getattr(error, "argument", None), "name", "")
        flags = [flag.lstrip("-").lower() for flag in [named, *re.findall(r"--[a-z][\w-]*", text)] if flag]
        keys = {key.replace("_", "-"): line for key, line in self.lines.items()}
        starts = [line for key, line in keys.items() if text.startswith(f"{key}:")]
        line = next(iter([keys[flag] for flag in flags if flag in keys] + starts), self.line)
        return UserError(f"{self.path}, line {line} ({self.command.name}): {first_line(error)}")


def read_recipe(path: Path) -> tuple[list[Step], str]:
    """The steps of a recipe, each checked as its command line would be, and the file's text.

    Raises UserError that says the line of what is wrong.
    """
    root, text = _parsed(path)
    parts = dict(_pairs(path, root, "a recipe"))
    if set(parts) - {"steps"} or "steps" not in parts:
        strange = next(iter(set(parts) - {"steps"}), None)
        line = 1 if strange is None else parts[strange].start_mark.line + 1
        raise UserError(f"{path}, line {line}: a recipe has one entry, `steps`; got {strange or 'none'}")
    if not isinstance(parts["steps"], yaml.SequenceNode) or not parts["steps"].value:
        raise UserError(f"{path}, line {_line(parts['steps'])}: `steps` is a list of commands, as - prune: {{…}}")
    steps = [_step(path, node) for node in parts["steps"].value]
    for step in steps:
        check(step)
    return steps, text


def read_config(path: Path, command: Command) -> Step:
    """The options in a file of one command's. Raises UserError that says the line of what is wrong."""
    root, _ = _parsed(path)
    return _filled(path, command, root, 1)


def check(step: Step) -> None:
    """Raise UserError, with the line, for what the command line would refuse."""
    try:
        app.parse_args(step.words, exit_on_error=False, print_error=False)
    except (CycloptsError, UserError) as error:
        raise step.wrong(error) from error


def as_recipe(words: Sequence[str]) -> str:
    """A command line as a recipe of one step. Raises UserError for one that can't be a step."""
    found = command_of(words)
    if found is None or found[0].name not in names_of_commands():
        raise UserError(f"{' '.join(words[:1]) or 'nothing'} is no command that a recipe can hold")
    command, rest = found
    value = {"steps": [{command.name: command.mapping(rest)}]}
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120)


def _parsed(path: Path) -> tuple[yaml.Node, str]:
    try:
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path} has {path.stat().st_size:,} bytes; a recipe is at most {LARGEST:,}")
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be read: {getattr(error, 'strerror', None) or error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{where}: no YAML: {getattr(error, 'problem', None) or first_line(error)}") from error
    if root is None:
        raise UserError(f"{path} is empty; a recipe has `steps`, a config file options")
    return root, text


def _step(path: Path, node: yaml.Node) -> Step:
    parts = _pairs(path, node, "a step")
    if len(parts) != 1:
        raise UserError(
            f"{path}, line {_line(node)}: a step is one command with its options; got {len(parts)} entries. Indent the "
            "options under the command"
        )
    [(name, options)] = parts
    known = names_of_commands()
    if name not in known:
        raise UserError(f"{path}, line {_line(node)}: {unknown('command', name, known)}")
    return _filled(path, Command(name), options, _line(node))


def _filled(path: Path, command: Command, node: yaml.Node, line: int) -> Step:
    """A command with the options of a mapping."""
    step = Step(command, {}, path, line)
    for key, value in _pairs(path, node, f"the options of {command.name}"):
        step.lines[key] = _line(value)
        try:
            option = command.option(key)
        except UserError as error:
            raise UserError(f"{path}, line {_line(value)}: {error}") from error
        if option.key in step.values:
            raise UserError(f"{path}, line {_line(value)}: {key} stands there twice")
        found = _value(path, value)
        if found is not None:
            step.values[option.key] = found
    return step


def _value(path: Path, node: yaml.Node) -> Value | None:
    if isinstance(node, yaml.ScalarNode):
        return None if node.tag == NOTHING else _scalar(node)
    if isinstance(node, yaml.SequenceNode) and all(isinstance(part, yaml.ScalarNode) for part in node.value):
        return [str(part.value) for part in node.value]
    if isinstance(node, yaml.MappingNode) and all(isinstance(part, yaml.ScalarNode) for _, part in node.value):
        return {key: str(part.value) for key, part in _pairs(path, node, "the parts")}
    raise UserError(f"{path}, line {_line(node)}: a value is one text, a list of them, or names with one text each")


def _scalar(node: yaml.ScalarNode) -> str | bool:
    truth = node.tag == TRUTH and node.value.lower() in ("true", "false")
    return node.value.lower() == "true" if truth else str(node.value)


def _pairs(path: Path, node: yaml.Node, what: str) -> list[tuple[str, Any]]:
    if isinstance(node, yaml.ScalarNode) and node.tag == NOTHING:
        return []
    if not isinstance(node, yaml.MappingNode):
        raise UserError(f"{path}, line {_line(node)}: {what} must be names with values, as `out: small`")
    found = [(str(key.value), value) for key, value in node.value]
    seen: set[str] = set()
    for name, value in found:
        if name in seen:
            raise UserError(f"{path}, line {_line(value)}: {name} stands there twice")
        seen.add(name)
    return found


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def settings_of(words: Sequence[str], config: Path) -> list[str]:
    """A command line with what a config file says beside it; what stands on the line wins."""
    found = command_of(words)
    if found is None:
        raise UserError(f"--config {config} is for a command with options, such as seap prune MODEL --config {config}")
    command, rest = found
    step = read_config(config, command)
    given: Mapping[str, Value] = command.mapping(rest)
    check(Step(command, {**step.values, **given}, config, 1, step.lines))
    return command.words({**step.values, **given})
