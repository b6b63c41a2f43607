"""How the command prints its help: options and commands in groups, and examples as they are typed."""

import re
from collections.abc import Iterable
from typing import Any

import typer.core

EXIT_CODES = {
    0: "success",
    1: "`check`: the plan does not fit the model; `doctor`: something does not work",
    2: "an error, which is one line on standard error",
    130: "Ctrl-C",
}
"""What each exit code means."""

RANGE = r"\s*\[[\d<=]*x[<>=\d]+\]$|;\s*[\d<=]*x[<>=\d]+(?=\]$)"  # of numbers, which an error names

GROUPS = ("Arguments", "Plan", "Tuning", "Samples", "Comparison", "Model", "Pipelines", "Output", "Options")
"""The groups of options, in the order of the help."""


def examples(*lines: str) -> str:
    """The text below the options of a command: its examples."""
    return "\n".join(["Examples:", *(f"  {line}" for line in lines)])


def _heading(text: str) -> str:
    return typer.style(text, bold=True)  # bold on terminals only


def _write_groups(formatter: Any, records: Iterable[tuple[str, tuple[str, str]]]) -> None:
    """Write records (left, right), each with the name of its group, group by group."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for group, record in records:
        groups.setdefault(group, []).append(record)
    for group in sorted(groups, key=lambda name: GROUPS.index(name) if name in GROUPS else -1):
        with formatter.section(_heading(group)):
            formatter.write_dl(groups[group])


def _group_of(one: Any) -> str:
    """The group of a command or of a parameter."""
    if getattr(one, "param_type_name", None) == "argument":
        return "Arguments"
    return one.rich_help_panel or "Options"


def _write_options(command: Any, context: Any, formatter: Any) -> None:
    records = []
    for each in command.get_params(context):
        if (record := each.get_help_record(context)) is not None:
            text = re.sub(RANGE, "", record[1])
            records.append((_group_of(each), (record[0], text)))
    _write_groups(formatter, records)


def _write_epilog(command: Any, formatter: Any) -> None:
    """Write the text below the options line by line: a line that is typed is not broken."""
    if command.epilog:
        title, *lines = command.epilog.splitlines()
        formatter.write(f"\n{_heading(title)}\n" + "".join(f"{line}\n" for line in lines))


class Command(typer.core.TyperCommand):
    """A command with options in groups."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        _write_options(self, ctx, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        _write_epilog(self, formatter)


class CommandGroup(typer.core.TyperGroup):
    """Commands in groups, in the order in which they are defined."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        self.format_commands(ctx, formatter)
        _write_options(self, ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        commands = {name: self.get_command(ctx, name) for name in self.list_commands(ctx)}
        _write_groups(
            formatter,
            ((_group_of(one), (name, one.get_short_help_str(limit=100))) for name, one in commands.items() if one),
        )

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        _write_epilog(self, formatter)
