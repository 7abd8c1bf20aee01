"""How help is laid out: the task first, options and arguments named by words, runnable examples at the end.

A command's docstring ends with its examples, a paragraph each. An example too long for the terminal is continued with a
backslash, so that it can be copied as it stands.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

_PROGRAM = "appliance "
_INDENT = "  "


def split(text: str) -> tuple[str, list[str]]:
    """A docstring's explanation, and its examples, each in one line."""
    paragraphs = [part for part in inspect.cleandoc(text).split("\n\n") if part.strip()]
    first = len(paragraphs)
    while first and paragraphs[first - 1].startswith(_PROGRAM):
        first -= 1
    return "\n\n".join(paragraphs[:first]), [" ".join(part.split()) for part in paragraphs[first:]]


def folded(command: str, width: int) -> list[str]:
    """A shell command in lines of at most `width` columns, if its words allow that, as a shell reads them.

    >>> folded("appliance run my.yaml --set train.epochs=1", 30)
    ['appliance run my.yaml \\\\', '    --set train.epochs=1']
    """
    lines, line = [], ""
    # an option stays with its value
    for word in re.findall(r'--?[\w-]+ (?!-)(?:"[^"]*"|\S+)|"[^"]*"|\S+', command):
        if line and len(line) + len(word) + len(" \\") + 1 > width:
            lines.append(line + " \\")
            line = "    " + word
        else:
            line = f"{line} {word}" if line else word
    return [*lines, line]


class _Layout:
    """Mixed into Typer's commands and groups, whose methods these replace."""

    help: str | None

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Typer puts what is required in braces, and what our own metavars call optional in two pairs of brackets."""
        pieces: list[str] = super().collect_usage_pieces(ctx)  # type: ignore[misc]
        return [re.sub(r"^\{(.*)\}", r"\1", re.sub(r"^\[\[(.*)\]\]", r"[\1]", piece)) for piece in pieces]

    def format_help_text(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        """Without the examples."""
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(split(self.help or "")[0])

    def format_epilog(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        """The examples."""
        examples = split(self.help or "")[1]
        if examples:
            with formatter.section("Examples"):
                for example in examples:
                    for line in folded(example, formatter.width - len(_INDENT)):
                        formatter.write(f"{_INDENT}{line}\n")


class HelpCommand(_Layout, TyperCommand):
    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments without the type that Typer adds in angle brackets: their names are words."""
        found: dict[str, list[tuple[str, str]]] = {"argument": [], "option": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                name, text = record
                is_argument = parameter.param_type_name == "argument"
                name = re.sub(r" <.*>(\.\.\.)?$", "", name) if is_argument else name
                found[parameter.param_type_name].append((name, _bounds_in_words(text)))
        for kind, records in found.items():
            if records:
                with formatter.section(f"{kind.capitalize()}s"):
                    formatter.write_dl(records)


class HelpGroup(_Layout, TyperGroup):
    pass


def _bounds_in_words(text: str) -> str:
    """'[x>=1]' as '[at least 1]'."""
    text = re.sub(r"([\d.]+)<=x<=([\d.]+)", r"\1 to \2", text)
    return re.sub(r"\bx>=([\d.]+)", r"at least \1", text)


def lay_out(app: typer.Typer) -> None:
    """Every command below `app` that has no class of its own is laid out like this."""
    for command in app.registered_commands:
        if command.cls is None or command.cls is TyperCommand:
            command.cls = HelpCommand
    for group in app.registered_groups:
        assert group.typer_instance is not None
        lay_out(group.typer_instance)
