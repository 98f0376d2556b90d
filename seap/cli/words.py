"""A command's options as the words of its command line, and as the mapping that a recipe or a config file has.

Both ways go by what cyclopts knows of the command, so that every option there is can be in a file too.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, get_args

from seap.cli.app import app
from seap.errors import UserError, unknown

Value = str | bool | list[str] | dict[str, str]
GLOBAL = ("help", "version")


@dataclass(frozen=True)
class Option:
    """One option or, without a flag, one positional argument of a command."""

    key: str  # in a file
    flag: str | None
    negative: str | None
    is_flag: bool  # stands alone, without a value
    many: bool  # may be repeated
    keyed: bool  # --weights.NAME VALUE


@dataclass(frozen=True)
class Command:
    """The options of a command, named by its words, as `prune` or `corpus write`."""

    name: str

    @cached_property
    def options(self) -> dict[str, Option]:
        """By key, the positional ones first."""
        node = app
        for word in self.name.split():
            node = node[word]
        found = [_option(argument) for argument in node.assemble_argument_collection() if _is_asked(argument)]
        return {option.key: option for option in sorted(found, key=lambda option: option.flag is not None)}

    def option(self, key: str) -> Option:
        """Raises UserError for an option that the command hasn't got."""
        known, wanted = self.options, key.removeprefix("--").replace("_", "-")
        if wanted not in known:
            raise unknown(f"option of {self.name}", key, known)
        return known[wanted]

    def words(self, values: Mapping[str, Value]) -> list[str]:
        """The command line: `prune`, the positional arguments, and `--option=value`."""
        chosen = {self.option(key).key: value for key, value in values.items()}
        found = self.name.split()
        for key, option in self.options.items():
            if key in chosen:
                found += _words(option, chosen[key])
        return found

    def mapping(self, words: Sequence[str]) -> dict[str, Value]:
        """The other way: what the words after the command's name say, as values of a file."""
        found: dict[str, Value] = {}
        places = iter([option for option in self.options.values() if option.flag is None])
        place, rest = None, list(words)
        while rest:
            word = rest.pop(0)
            if not word.startswith("--") or word == "--":
                place = place if place is not None and place.many else next(places, None)
                if place is None:
                    raise UserError(f"{self.name}: {word} is one argument too many")
                _put(found, place, word)
                continue
            name, equals, value = word.partition("=")
            option = self._named(name)
            if option.is_flag and not equals:
                found[option.key] = name != option.negative
                continue
            value = value if equals else rest.pop(0) if rest else ""
            if option.keyed:
                found.setdefault(option.key, {})[name.partition(".")[2]] = value  # type: ignore[call-overload,index]
            else:
                _put(found, option, value)
        return found

    def _named(self, flag: str) -> Option:
        for option in self.options.values():
            keyed = option.keyed and flag.startswith(f"{option.flag}.")
            if flag in (option.flag, option.negative) or keyed:
                return option
        raise unknown(f"option of {self.name}", flag, [f"--{key}" for key in self.options])


def command_of(words: Sequence[str]) -> tuple[Command, list[str]] | None:
    """Which command a command line is of, and the rest of it; None where it is none that takes options."""
    chain, _, rest = app.parse_commands(list(words))
    names = [name for name in chain if not name.startswith("-")]
    if not names or len(names) < len(chain) or app_of(names).default_command is None:
        return None
    return Command(" ".join(names)), list(rest)


def app_of(names: Iterable[str]) -> Any:
    node: Any = app
    for name in names:
        node = node[name]
    return node


def names_of_commands() -> list[str]:
    """All that can be a step."""
    found = []
    for name in app:
        if name.startswith("-") or name == "run":
            continue
        inner = [word for word in app[name] if not word.startswith("-")]
        found += [f"{name} {word}" for word in inner] or [name]
    return found


def _is_asked(argument: Any) -> bool:
    return bool(argument.parse and argument.parameter.name and (not argument.children or argument._keyless_members))


def _option(argument: Any) -> Option:
    name = argument.positives[0]
    flag = name if name.startswith("--") else None
    is_flag = set(get_args(argument.hint) or (argument.hint,)) - {type(None)} == {bool}
    text = str(argument.hint)
    return Option(
        key=name.removeprefix("--").lower().replace("_", "-"),
        flag=flag,
        negative=next(iter(argument.negatives), None),
        is_flag=is_flag,
        many=not is_flag and ("tuple" in text or argument.field_info.kind is argument.field_info.VAR_POSITIONAL),
        keyed="dict" in text or any(getattr(part, "__origin__", part) is dict for part in get_args(argument.hint)),
    )


def _words(option: Option, value: Value) -> list[str]:
    if option.is_flag:
        return _flag_words(option, value)
    if isinstance(value, dict):
        if not option.keyed:
            raise UserError(f"{option.key}: has no parts; give one value")
        return [f"{option.flag}.{name}={part}" for name, part in value.items()]
    parts = value if isinstance(value, list) else [value]
    if len(parts) > 1 and not option.many:
        raise UserError(f"{option.key}: takes one value, got {len(parts)}")
    texts = ["true" if part is True else "false" if part is False else str(part) for part in parts]
    return texts if option.flag is None else [f"{option.flag}={text}" for text in texts]


def _flag_words(option: Option, value: Value) -> list[str]:
    if value is True or str(value).lower() == "true":
        return [str(option.flag)]
    if value is not False and str(value).lower() != "false":
        raise UserError(f"{option.key}: {value!r} is neither true nor false")
    return [option.negative] if option.negative else []


def _put(found: dict[str, Value], option: Option, value: str) -> None:
    if option.many:
        found[option.key] = [*found.get(option.key, []), value]  # type: ignore[misc]
    else:
        found[option.key] = value
