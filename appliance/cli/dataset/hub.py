"""`appliance dataset hub`: a file of a Hub dataset, fetched at a pinned commit, as a CSV. No logic here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from appliance.errors import DataError

if TYPE_CHECKING:
    from datasets_src.pairs import Dropped, Pair

# First bytes of what `records` reads, after whitespace and a BOM: Parquet, XLSX, old XLS (refused by name), JSON.
_RECORDS = (b"PAR1", b"PK\x03\x04", b"\xd0\xcf\x11\xe0", b"{", b"[")


def register(dataset_app: typer.Typer) -> None:
    """Adds the command to `appliance dataset`."""
    dataset_app.command("hub")(hub)


def hub(
    address: Annotated[
        str,
        typer.Argument(metavar="USER/NAME/FILE[@REVISION]", help="Or its hf:// address, as in data.csv."),
    ],
    out_path: Annotated[
        Path, typer.Argument(metavar="OUT.csv", help="The CSV to write; OUT.csv.origin.json goes next to it.")
    ],
    question: Annotated[str | None, typer.Option("--question", metavar="FIELD", help="The question's column.")] = None,
    answer: Annotated[str | None, typer.Option("--answer", metavar="FIELD", help="The answer's column.")] = None,
    input_: Annotated[
        str | None, typer.Option("--input", metavar="FIELD", help="The context's column, if any.")
    ] = None,
    group: Annotated[
        str | None, typer.Option("--group", metavar="FIELD", help="Rows with the same value here share a `group`.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT.csv if it exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the origin note as JSON.")] = False,
) -> None:
    """A file of a dataset on the Hub. CSV, JSON, JSONL, Parquet or XLSX; the origin note names its commit.

    A private or gated dataset needs HF_TOKEN. A CSV need not be copied: data.csv in a recipe accepts its hf:// address.

    appliance dataset hub someone/faq/train.csv data/train.csv

    appliance dataset hub hf://datasets/someone/faq@v1.0/data/train.parquet data/train.csv --question Q --answer A
    """
    from appliance.cli.dataset import sources
    from appliance.hub.dataset_file import DatasetFile
    from datasets_src.sources import records

    if out_path.exists() and not force:  # before the download
        raise DataError(f"{out_path} already exists", hint="name another file, or replace it with --force")
    file = DatasetFile.parse(address if address.startswith("hf:") else _long(address))
    path, commit = file.fetch()
    options = {"repo": file.repo, "file": file.file, "asked_revision": file.revision, "commit": commit}
    columns = {"question": question, "answer": answer, "input": input_, "group": group}
    extra: dict[str, Any] = {}
    with path.open("rb") as stream:
        head = stream.read(1024).removeprefix(b"\xef\xbb\xbf").lstrip()
    if head.startswith(_RECORDS):
        pairs = records.pairs(path, fields=records.Fields(**columns), turns="all", sheet=None, extra=extra)
    else:
        pairs = _csv_pairs(path, columns)
    sources.write("hub", path, out_path, options | columns, pairs, extra, force=force, as_json=as_json)


def _long(address: str) -> str:
    """The hf:// address for USER/NAME/FILE[@REVISION]; anything else is refused when it is parsed."""
    from urllib.parse import quote

    place, _, revision = address.partition("@")
    user, _, rest = place.partition("/")
    name, _, file = rest.partition("/")
    return f"hf://datasets/{user}/{name}{'@' + quote(revision, safe='') if revision else ''}/{file}"


def _csv_pairs(path: Path, columns: dict[str, str | None]) -> Iterator[Pair | Dropped]:
    from appliance.process import console
    from appliance.rows import csv_file
    from datasets_src.pairs import Dropped, Pair

    roles = {"instruction": columns["question"], "output": columns["answer"], "input": columns["input"]}
    fmt = csv_file.sniff(path, {role: name for role, name in roles.items() if name}, columns["group"])
    console.say(f"{path.name}: {fmt.describe()}")
    for row in csv_file.read(path, fmt):
        if isinstance(row, csv_file.Rejected):
            yield Dropped(f"line {row.line}", row.reason)
        else:
            yield Pair(row.instruction, row.output, row.input, row.group)
