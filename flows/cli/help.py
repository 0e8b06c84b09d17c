"""Commands whose options come from settings, and the help they print: names are never cut, options stand in groups."""

from collections.abc import Callable, Sequence
from typing import Any

import click

from trackstar.flows.cli.options import SettingOption, click_options, spread, values
from trackstar.tasks.runtime.settings import Settings

NAME_COLUMNS = 26  # a longer name has a line of its own
OUTPUT = "Output"
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class GroupedOption(click.Option):
    """An option that is no setting."""

    def __init__(self, *names: str, group: str = OUTPUT, **how: Any) -> None:
        super().__init__(list(names), **how)
        self.group = group


def output_options() -> list[click.Option]:
    return [
        GroupedOption("--json", "as_json", is_flag=True, help="Print the result as JSON."),
        GroupedOption("-q", "--quiet", is_flag=True, help="Print nothing but errors, and JSON where asked for."),
        GroupedOption("-v", "--verbose", is_flag=True, help="Print what the orchestrator does."),
    ]


class Commands(click.Group):
    """Commands, each with the whole of what it does."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, self.commands[name].help or "") for name in self.list_commands(ctx)])
        formatter.write_paragraph()
        formatter.write_text("`trackstar COMMAND -h` shows the options of a command.")


class Command(click.Command):
    """A command with an example, and with settings where it has some."""

    def __init__(
        self,
        name: str,
        run: Callable[..., None],
        *,
        config: type[Settings] | None = None,
        example: str,
        params: Sequence[click.Parameter] = (),
    ) -> None:
        self.config, self.example = config, example
        settings = click_options(config) if config else []
        super().__init__(
            name,
            callback=run,
            help=run.__doc__,
            params=[*settings, *params, *output_options()],
            context_settings=CONTEXT,
            options_metavar="[OPTIONS]",
        )

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        several = [option for option in self.params if isinstance(option, SettingOption) and option.takes_words]
        return super().parse_args(ctx, spread(args, [name for option in several for name in option.opts]))

    def invoke(self, ctx: click.Context) -> Any:
        """Run with the settings, read and known to be right in themselves, in place of their options."""
        if self.config is not None:
            own = {name: ctx.params.pop(name) for name in [o.name for o in self.params if isinstance(o, SettingOption)]}
            ctx.params["config"] = self.config.model_validate(values(self.config, own))
        return super().invoke(ctx)

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        required = [
            f"{option.setting.option.name} {option.make_metavar(ctx)}"
            for option in self.params
            if isinstance(option, SettingOption) and option.setting.field.is_required()
        ]
        formatter.write_usage(ctx.command_path, " ".join([*required, *self.collect_usage_pieces(ctx)]))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Options by group, in the order in which groups appear; those of output last."""
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(click.style(f"$ {self.example}", dim=True))
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                groups.setdefault(getattr(parameter, "group", OUTPUT), []).append(record)
        for group, records in sorted(groups.items(), key=lambda item: item[0] == OUTPUT):
            with formatter.section(group):
                formatter.write_dl(records, col_max=NAME_COLUMNS)
