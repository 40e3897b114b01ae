#!/usr/bin/env python3
"""Write the tables of README and docs from the results in the repository.

> python docs/tables.py            # rewrites the pages
> python docs/tables.py --check    # shows what would change, as a diff

A page has a table between two lines, ``<!-- table: NAME -->`` and
``<!-- /table -->``, each alone on its line. What stands between them is
written anew, from the files that `TABLES` names.
"""

import argparse
import csv
import difflib
import json
import re
import sys
from pathlib import Path

import tables_of_benchmarks
import tables_of_experiments
import tables_of_package
import yaml

ROOT = Path(__file__).resolve().parent.parent
PAGES = (
    "README.md",
    "docs/**/*.md",
    "experiments/**/*.md",
    "benchmarks/*.md",
)
# By name a function and the files whose contents it takes. It returns the rows
# of the table, the header first.
TABLES = {
    **tables_of_experiments.TABLES,
    **tables_of_benchmarks.TABLES,
    **tables_of_package.TABLES,
}
OPEN = re.compile(r"<!-- table: (\S+) -->")
CLOSE = "<!-- /table -->"
MARKER = re.compile(r"\s*<!--\s*/?\s*table\b")


class TableError(Exception):
    """The markers of a page are wrong."""


def read(path):
    """Return what is in a file: of Markdown, the cells of its table."""
    text = path.read_text("utf-8")
    if path.suffix == ".json":
        return json.loads(text)
    if path.suffix == ".yaml":
        return yaml.safe_load(text)
    if path.suffix == ".csv":
        return list(csv.DictReader(text.splitlines()))
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [line.strip("| ").split(" | ") for line in lines]


def table(name):
    """Return the lines of a table in Markdown.

    Arguments
    ---------
    name : str
        One of `TABLES`.

    Returns
    -------
    list of str

    Example
    -------
    >>> table("objective_costs")[:3]
    ['| objective | tiny | base |', '|---|---|---|', '| `mspm` | 1.0 | 1.0 |']
    """
    rows_of, *sources = TABLES[name]
    header, *rows = rows_of(*(read(ROOT / source) for source in sources))
    lines = [
        "|" + "".join(f" {cell} |".replace("  ", " ") for cell in row)
        for row in (header, *rows)
    ]
    return [lines[0], "|---" * len(header) + "|", *lines[1:]]


def fill(text, page):
    """Return the text of a page with its tables written anew.

    Arguments
    ---------
    text : str
        Of the page.
    page : str
        What errors call it.

    Returns
    -------
    str

    Raises
    ------
    TableError
        If a marker is misspelled, names no table, or is not closed.
    """
    filled, name, opened = [], None, None
    for number, line in enumerate(text.split("\n"), 1):
        start = OPEN.fullmatch(line)
        if name and start:
            break
        if name and line == CLOSE:
            filled += [*table(name), line]
            name = None
        elif start:
            name, opened = start[1], number
            if name not in TABLES:
                raise TableError(
                    f"{page}, line {number}: there is no table {name}, only "
                    f"{', '.join(TABLES)} (see docs/tables.py)"
                )
            filled.append(line)
        elif MARKER.match(line):
            raise TableError(
                f"{page}, line {number}: {line.strip()} opens or closes "
                f"nothing; write <!-- table: NAME --> and {CLOSE}, each alone "
                "on its line"
            )
        elif not name:
            filled.append(line)
    if name:
        raise TableError(
            f"{page}, line {opened}: the table {name} does not end; add a line "
            f"{CLOSE}"
        )
    return "\n".join(filled)


def changes(root=ROOT):
    """Yield the pages that differ from the results.

    Arguments
    ---------
    root : pathlib.Path
        Folder of the pages.

    Yields
    ------
    page : pathlib.Path
    old, new : str
        Its text, and what it should be.
    """
    for page in sorted(path for glob in PAGES for path in root.glob(glob)):
        old = page.read_text("utf-8")
        new = fill(old, str(page.relative_to(root)))
        if new != old:
            yield page, old, new


def main(arguments=None):
    """Rewrite the pages, or show what would change.

    Arguments
    ---------
    arguments : list of str, optional
        Those of the command line when left out.

    Returns
    -------
    int
        Exit code: 1 if ``--check`` finds a difference.
    """
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args(arguments)
    try:
        found = list(changes())
    except TableError as error:
        sys.exit(str(error))
    for page, old, new in found:
        name = str(page.relative_to(ROOT))
        if options.check:
            versions = old.splitlines(), new.splitlines()
            names = name, f"{name} (python docs/tables.py)"
            diff = difflib.unified_diff(*versions, *names, lineterm="")
            print("\n".join(diff))
        else:
            page.write_text(new, "utf-8")
            print(f"{name}: written")
    return int(options.check and bool(found))


if __name__ == "__main__":
    sys.exit(main())
