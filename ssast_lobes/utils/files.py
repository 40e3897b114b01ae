"""Write files that appear only when complete, and name files in errors."""

import csv
import io
import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def filename_in_errors(path):
    """Add the name of a file to errors that occur while writing it.

    Arguments
    ---------
    path : str or os.PathLike
        The file.

    Example
    -------
    >>> with filename_in_errors("full.txt"):
    ...     raise OSError(28, "No space left on device")
    Traceback (most recent call last):
    ...
    OSError: [Errno 28] No space left on device: 'full.txt'
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            # The error has only a text, and a filename attribute would garble
            # it.
            error.args = (f"{path}: {error}",)
        elif error.filename is None:
            error.filename = os.fspath(path)
        raise


@contextmanager
def atomic_write(path, mode="w"):
    """Open a file that appears when it is complete.

    Arguments
    ---------
    path : str or os.PathLike
        The file; an older one is replaced.
    mode : str
        ``"w"`` for text, ``"wb"`` for bytes.

    Yields
    ------
    file
        The open file.

    Example
    -------
    >>> path = getfixture("tmpdir").join("result.txt")
    >>> with atomic_write(path) as file:
    ...     written = file.write("complete")
    >>> path.read()
    'complete'
    """
    partial = f"{path}.{os.getpid()}.partial"
    # File names on Linux may hold bytes that are not UTF-8.
    text = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
    try:
        with (
            filename_in_errors(path),
            open(partial, mode, **(text if mode == "w" else {})) as file,
        ):
            yield file
    except BaseException:
        # There is no partial file if it could not be opened.
        Path(partial).unlink(missing_ok=True)
        raise
    os.replace(partial, path)


def read_csv(path):
    """Return the rows of a CSV.

    Arguments
    ---------
    path : str or os.PathLike
        The file.

    Returns
    -------
    list of list of str

    Example
    -------
    >>> path = getfixture("tmpdir").join("rows.csv")
    >>> write_csv(path, [("id", "path"), ("a", "a, b.wav")])
    >>> read_csv(path)
    [['id', 'path'], ['a', 'a, b.wav']]
    """
    with open(
        path, encoding="utf-8", errors="surrogateescape", newline=""
    ) as file:
        return list(csv.reader(file))


def write_csv(path, rows):
    """Write rows to a CSV that appears when it is complete.

    Arguments
    ---------
    path : str or os.PathLike
        The file; an older one is replaced.
    rows : iterable of sequence
        The cells.

    Example
    -------
    >>> write_csv(getfixture("tmpdir").join("rows.csv"), [("id", "path")])
    """
    with atomic_write(path) as file:
        csv.writer(file).writerows(rows)


def write_json(path, content):
    """Write a JSON file that appears when it is complete.

    Arguments
    ---------
    path : str or os.PathLike
        The file; an older one is replaced.
    content : object
        Plain values.

    Example
    -------
    >>> path = getfixture("tmpdir").join("result.json")
    >>> write_json(path, {"accuracy": 0.5})
    >>> print(path.read().strip())
    {
      "accuracy": 0.5
    }
    """
    with atomic_write(path) as file:
        file.write(json.dumps(content, indent=2) + "\n")


def append_row(path, row):
    """Append a row to a CSV that several processes write.

    The row is written at once, in append mode, so rows of different processes
    do not mix.

    Arguments
    ---------
    path : str or os.PathLike
        The file, which is created if it does not exist.
    row : sequence
        The cells.

    Example
    -------
    >>> path = getfixture("tmpdir").join("rows.csv")
    >>> append_row(path, ("a, b", 1))
    >>> path.read()
    '"a, b",1\\n'
    """
    line = io.StringIO()
    csv.writer(line).writerow(row)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    file = os.open(path, flags, 0o644)
    try:
        os.write(file, line.getvalue().encode("utf-8", "surrogateescape"))
    finally:
        os.close(file)


def absolute(path, root=""):
    """Return the absolute path of a file, with ``~`` resolved.

    Arguments
    ---------
    path : str
        Path, absolute or relative to `root`.
    root : str
        Folder, absolute or relative to the working folder.

    Returns
    -------
    str

    Example
    -------
    >>> absolute("../b.wav", root="/data/a")
    '/data/b.wav'
    """
    return os.path.abspath(os.path.join(root, os.path.expanduser(path)))


def resolved(folder):
    """Return the absolute path of a folder, with ``~`` and links resolved.

    Arguments
    ---------
    folder : str or path
        The folder; it need not exist.

    Returns
    -------
    pathlib.Path

    Example
    -------
    >>> resolved("models/export").is_absolute()
    True
    """
    return Path(os.path.realpath(Path(folder).expanduser()))


@contextmanager
def atomic_replace_dir(folder, files, check):
    """Replace a folder by a new one when the block ends.

    If the block raises an error, the old folder does not change.

    Arguments
    ---------
    folder : pathlib.Path
        The folder to replace, with links resolved.
    files : tuple of str
        Names of entries that are replaced. Other entries of the old folder are
        kept.
    check : callable
        Function of the folder that raises if it must not be replaced.

    Yields
    ------
    pathlib.Path
        The new folder, to write to.

    Example
    -------
    >>> folder = Path(getfixture("tmpdir")) / "new"
    >>> with atomic_replace_dir(folder, ("a",), lambda path: None) as partial:
    ...     _ = (partial / "a").write_text("1")
    >>> [path.name for path in folder.iterdir()]
    ['a']
    """
    partial = folder.with_name(f".{folder.name}.partial")
    old = folder.with_name(f".{folder.name}.old")
    # An earlier run may have been killed between the two renames below, or
    # after them.
    if old.exists() and not folder.exists():
        os.replace(old, folder)
    elif old.exists():
        _keep_others(old, folder, files)
    check(folder)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if not folder.exists():
        os.replace(partial, folder)
        return
    os.replace(folder, old)
    os.replace(partial, folder)
    _keep_others(old, folder, files)


def _keep_others(old, folder, files):
    """Move all entries but `files` to a new folder; remove the old folder."""
    for entry in old.iterdir():
        if entry.name not in files and not (folder / entry.name).exists():
            os.replace(entry, folder / entry.name)
    shutil.rmtree(old)
