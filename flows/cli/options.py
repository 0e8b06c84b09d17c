"""The options of a command, derived from the settings of its flow: a field is an option, and is told once.

    token_budget: int = Field(4096, ge=16, description="Tokens of a batch")
        ─▶  --token-budget N   Tokens of a batch  [default: 4096; at least 16]

Only what was given reaches the settings, so that defaults are theirs too. Values stay words until the settings
themselves read them; what is wrong with one is said by ``flows/cli/sentences.py`` in the option's name.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import annotated_types as bounds
import click
from click.shell_completion import CompletionItem
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from trackstar.flows.places import Place
from trackstar.tasks.runtime.settings import Option, Settings

Found = TypeVar("Found")

GENERAL = "Options"  # group of what belongs to no class with a title
BOUNDS: dict[type, Callable[[Any], str]] = {
    bounds.Ge: lambda bound: f"at least {bound.ge:g}",
    bounds.Gt: lambda bound: f"above {bound.gt:g}",
    bounds.Le: lambda bound: f"at most {bound.le:g}",
    bounds.Lt: lambda bound: f"below {bound.lt:g}",
    bounds.MultipleOf: lambda bound: f"a multiple of {bound.multiple_of:g}",
}


@dataclass(frozen=True)
class Setting:
    """A field of some settings, and the option that it is.

    Attributes:
        path: Names of the fields that lead to it.
        default: What it is where nothing is given; ``PydanticUndefined`` where something has to be.
        option: With its name and group.
    """

    path: tuple[str, ...]
    field: FieldInfo
    default: Any
    option: Option

    def value_in(self, settings: Settings) -> Any:
        for name in self.path:
            settings = getattr(settings, name)
        return settings

    @property
    def place(self) -> Place | None:
        """What a path has to be, if this is one."""
        return next(_metadata(self.field, Place), None)

    @property
    def types(self) -> tuple[Any, ...]:
        """What a value may be, None left out: of a list, what one of its values may be."""
        return tuple(_types(self.field.annotation))

    @property
    def choices(self) -> tuple[str, ...]:
        return tuple(choice for kind in self.types if get_origin(kind) is Literal for choice in get_args(kind))

    @property
    def is_flag(self) -> bool:
        return self.types == (bool,)

    @property
    def is_list(self) -> bool:
        return get_origin(self.field.annotation) is tuple

    @property
    def limits(self) -> str:
        known = [BOUNDS[type(bound)](bound) for bound in self.field.metadata if type(bound) in BOUNDS]
        return " and ".join(known)

    @property
    def expected(self) -> str:
        """What a value should be, in words."""
        names = {int: "a whole number", float: "a number", bool: "true or false"}
        kinds = [names[kind] for kind in self.types if kind in names]
        words = _alternatives([*kinds, *self.choices]) or "text"
        return f"{words}, {self.limits}" if self.limits else words


def settings_of(config: type[Settings], *, default: Settings | None = None) -> Iterator[Setting]:
    """Every field of some settings and of the settings within them."""
    title = config.model_config.get("title") or GENERAL
    for name, field in config.model_fields.items():
        value = field.get_default() if default is None else getattr(default, name)
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Settings):
            within = settings_of(inner, default=None if value is PydanticUndefined else value)
            yield from (replace(setting, path=(name, *setting.path)) for setting in within)
            continue
        given = next(_metadata(field, Option), Option())
        words = f"{config.option_prefix}_{name}".strip("_").replace("_", "-")
        option = replace(given, name=given.name or f"--{words}", group=given.group or title)
        yield Setting((name,), field, value, option)


def values(config: type[Settings], given: Mapping[str, Any]) -> dict[str, Any]:
    """What was given as the fields of some settings: a value of an option reaches every field of its name."""
    nested = _own_defaults(config)
    for setting in settings_of(config):
        value = given.get(parameter_name(setting.option.name))
        if value is None or value == ():
            continue
        inner = nested
        for name in setting.path[:-1]:
            inner = inner.setdefault(name, {})
        if then := setting.option.then:
            value, *further = value
            given = {**given, then: (*further, *(given.get(then) or ()))}
        inner[setting.path[-1]] = _split(value) if setting.is_list and not setting.option.words else value
    return nested


def click_options(config: type[Settings]) -> list["SettingOption"]:
    """The options of a command, each name once."""
    by_name: dict[str, Setting] = {}
    for setting in settings_of(config):
        by_name.setdefault(setting.option.name, setting)
    return [SettingOption(setting) for setting in by_name.values()]


def spread(arguments: Sequence[str], options: Iterable[str]) -> list[str]:
    """``--corpus A B`` as ``--corpus A --corpus B``: the shell expands ``*.jsonl`` into several words."""
    options, words, option = set(options), [], ""
    for argument in arguments:
        if argument in options:
            option = argument
            words.append(argument)
        elif argument.startswith("-") and argument != "-":
            option = ""
            words.append(argument)
        elif option and words[-1] != option:
            words += [option, argument]
        else:
            words.append(argument)
    return words


def parameter_name(option: str) -> str:
    return option.removeprefix("--").replace("-", "_")


class Word(click.ParamType):
    """A word that the settings read; the shell completes it where the choices are known, or where it is a path."""

    name = "text"

    def __init__(self, setting: Setting) -> None:
        self._setting = setting

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        setting = self._setting
        if setting.option.metavar:
            return setting.option.metavar
        numbers = {int: "N", float: "X"}
        names = [numbers[kind] for kind in setting.types if kind in numbers]
        metavar = "|".join([*names, *setting.choices]) or "TEXT"
        return f"{metavar},..." if setting.is_list else metavar

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        if self._setting.choices:
            return [CompletionItem(choice) for choice in self._setting.choices if choice.startswith(incomplete)]
        is_path = any(part in self._setting.option.metavar for part in ("PATH", "DIR", "FILE"))
        return [CompletionItem(incomplete, type="file")] if is_path else []


class SettingOption(click.Option):
    """The option of a setting."""

    def __init__(self, setting: Setting) -> None:
        self.setting, self.group = setting, setting.option.group
        name = setting.option.name
        names = [name, *setting.option.also]
        if setting.is_flag:
            names = [f"{name}/--no-{name.removeprefix('--')}"]
        is_multiple = setting.is_list or bool(setting.option.then)
        how: dict[str, Any] = {} if setting.is_flag else {"type": Word(setting), "multiple": is_multiple}
        super().__init__([*names, parameter_name(name)], default=None, help=setting.field.description, **how)

    @property
    def takes_words(self) -> bool:
        return self.setting.is_list and self.setting.option.words

    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:
        """The option's name, and its help with default and bounds."""
        setting = self.setting
        name = f"--[no-]{setting.option.name.removeprefix('--')}"
        if not setting.is_flag:
            name = f"{setting.option.name} {self.make_metavar(ctx)}"
        facts = [_shown_default(setting.default), setting.limits]
        told = "; ".join(fact for fact in facts if fact)
        return name, f"{setting.field.description or ''}  [{told}]" if told else setting.field.description or ""


def _shown_default(value: Any) -> str:
    if value is PydanticUndefined:
        return "required"
    if value is None or value == () or value == "":
        return ""
    if isinstance(value, bool):
        return f"default: {'yes' if value else 'no'}"
    return f"default: {','.join(map(str, value)) if isinstance(value, tuple) else value}"


def _own_defaults(config: type[Settings]) -> dict[str, Any]:
    """What settings say of those within them: the default of one field there must not undo that of another."""
    stated = {name: field.default for name, field in config.model_fields.items() if isinstance(field.default, Settings)}
    return {
        name: default.model_dump(exclude_unset=True) for name, default in stated.items() if default.model_fields_set
    }


def _split(words: Iterable[str]) -> list[str]:
    return [part.strip() for word in words for part in word.split(",") if part.strip()]


def _metadata(field: FieldInfo, kind: type[Found]) -> Iterator[Found]:
    """What of a kind the annotations of a field say, the outermost first: those of its parts count too."""
    yield from (item for item in reversed(field.metadata) if isinstance(item, kind))
    yield from _metadata_within(field.annotation, kind)


def _metadata_within(annotation: Any, kind: type[Found]) -> Iterator[Found]:
    if get_origin(annotation) is Annotated:
        yield from (item for item in reversed(get_args(annotation)[1:]) if isinstance(item, kind))
    if get_origin(annotation) in (Union, UnionType, Annotated, tuple):
        for inner in get_args(annotation):
            yield from _metadata_within(inner, kind)


def _types(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) in (Union, UnionType, tuple):
        yield from (kind for inner in get_args(annotation) for kind in _types(inner))
    elif get_origin(annotation) is Annotated:
        yield from _types(get_args(annotation)[0])
    elif annotation not in (type(None), Ellipsis):
        yield annotation


def _alternatives(words: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1] if words else ""]))
