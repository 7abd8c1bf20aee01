"""The generated parts of README.md and docs/: the table of recipes, the table of fields, the help of every command.

    python -m tests.project.generated            # writes them; `make docs`
    python -m tests.project.generated --check    # lists what is stale; then the exit code is 1

A process of its own, because the help is laid out for a terminal and a home folder: 80 columns and /home/you.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HELP_DIR = "docs/help"
TERMINAL = {"COLUMNS": "80", "TERM": "dumb", "NO_COLOR": "1", "HOME": "/home/you"}
NOTE = "<!-- written by `make docs` -->"


def pages() -> dict[str, str]:
    """Path below the repository -> its whole text, for every page with a generated part."""
    from appliance.recipe import catalogue
    from appliance.recipe import fields as recipe_fields

    fields = ["| field | default | meaning |", "|---|---|---|"]
    for field, default, meaning in recipe_fields.documentation():
        fields.append(f"| `{field}` | `{default}` | {meaning.replace('|', chr(92) + '|')} |")
    return {
        "README.md": filled("README.md", "recipes", catalogue.markdown()),
        "docs/recipes.md": filled("docs/recipes.md", "fields", "\n".join(fields) + "\n"),
        **help_pages(),
    }


def filled(name: str, mark: str, table: str) -> str:
    """The page with `table` between its marks. Raises ValueError: it has none."""
    text = (ROOT / name).read_text(encoding="utf-8")
    text, count = re.subn(
        rf"(<!-- {mark}: make docs -->\n).*?(?=<!-- end -->)", lambda found: found[1] + table, text, flags=re.DOTALL
    )
    if count != 1:
        raise ValueError(f"{name}: expected one pair of `<!-- {mark}: make docs -->` and `<!-- end -->`, found {count}")
    return text


def help_pages() -> dict[str, str]:
    """docs/help.md with the help of the program, and a page for each command below docs/help/."""
    import typer
    from typer.testing import CliRunner

    from appliance.cli.app import app

    def shown(words: list[str]) -> str:
        done = CliRunner().invoke(app, [*words, "--help"], prog_name="appliance")
        if done.exit_code:
            raise RuntimeError(f"appliance {' '.join(words)} --help: exit code {done.exit_code}\n{done.output}")
        return f"```text\n{done.stdout.strip()}\n```\n"

    def below(command: object, words: list[str]) -> Iterator[list[str]]:
        for name, sub in getattr(command, "commands", {}).items():
            yield [*words, name]
            yield from below(sub, [*words, name])

    commands = list(below(typer.main.get_command(app), []))
    links = "".join(f"- [`appliance {' '.join(words)}`](help/{'-'.join(words)}.md)\n" for words in commands)
    made = {"docs/help.md": f"# Help\n\n{NOTE}\n\n{shown([])}\n## The commands\n\n{links}"}
    for words in commands:
        title = f"# appliance {' '.join(words)}"
        made[f"{HELP_DIR}/{'-'.join(words)}.md"] = f"{title}\n\n{NOTE}\n\n{shown(words)}"
    return made


def main() -> int:
    if any(os.environ.get(name) != value for name, value in TERMINAL.items()):
        kept = {name: value for name, value in os.environ.items() if not name.startswith("APPLIANCE_")}
        os.execve(sys.executable, [sys.executable, "-m", "tests.project.generated", *sys.argv[1:]], kept | TERMINAL)
    wanted = pages()
    there = {path.relative_to(ROOT).as_posix() for path in (ROOT / HELP_DIR).glob("*.md")}
    stale = sorted(
        name
        for name, text in wanted.items()
        if not (ROOT / name).is_file() or (ROOT / name).read_text(encoding="utf-8") != text
    )
    left_over = sorted(there - wanted.keys())
    if "--check" in sys.argv[1:]:
        sys.stdout.writelines(f"{name}: not what `make docs` writes\n" for name in stale)
        sys.stdout.writelines(f"{name}: there is no such command\n" for name in left_over)
        return 1 if stale or left_over else 0
    (ROOT / HELP_DIR).mkdir(parents=True, exist_ok=True)
    for name in stale:
        (ROOT / name).write_text(wanted[name], encoding="utf-8")
    for name in left_over:
        (ROOT / name).unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
