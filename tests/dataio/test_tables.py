"""Manifests: the accepted ones, and one clear error for all others."""

import datetime
import os
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from scan_kit import scan_and_write
from speechbrain.dataio.encoder import CategoricalEncoder

from ssast_lobes.dataio.held_out import held_out
from ssast_lobes.dataio.scan import (
    check_unreadable,
    find_audio,
    folder_rows,
)
from ssast_lobes.dataio.tables import (
    ManifestError,
    index_rows,
    label_problem,
    read_manifest,
    split_labels,
)
from ssast_lobes.utils.files import filename_in_errors


def write_wav(path, seconds=0.1):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(str(path), np.zeros(round(seconds * 8000)), 8000)


@pytest.fixture
def corpus(tmp_path):
    for name in "abcd":
        write_wav(tmp_path / "audio" / f"{name}.wav")
    return tmp_path


def write_table(folder, text, encoding="utf-8"):
    path = folder / "table.csv"
    path.write_bytes(text.encode(encoding))
    return path


def names(rows):
    return [os.path.basename(row["path"]) for row in rows]


# --- finding audio


def test_find_audio_is_recursive_sorted_and_leaves_hidden_files(tmp_path):
    for name in "z.WAV", "b/x.flac", "b/a.mp3", ".hidden/c.wav", "._z.wav":
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (tmp_path / "notes.txt").touch()
    found = [os.path.relpath(path, tmp_path) for path in find_audio(tmp_path)]
    assert found == ["b/a.mp3", "b/x.flac", "z.WAV"]


def test_find_audio_follows_links_once(tmp_path):
    write_wav(tmp_path / "elsewhere" / "a.wav")
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(folder)
    assert find_audio(folder) == [str(folder / "link" / "a.wav")]


def test_find_audio_says_what_is_missing(tmp_path):
    with pytest.raises(ManifestError, match="no such folder"):
        find_audio(tmp_path / "nowhere")
    with pytest.raises(ManifestError, match="no audio files"):
        find_audio(tmp_path)


def test_folder_rows_have_ids_that_do_not_depend_on_the_machine(corpus):
    ids = [row["id"] for row in folder_rows(corpus)]
    assert ids == [f"audio/{name}.wav" for name in "abcd"]


# --- reading a manifest


def test_values_stay_text_and_other_columns_pass(corpus):
    table = write_table(
        corpus,
        "label,Path,split,Corpus\n"
        "nan,audio/a.wav,train,x\n"
        "007,audio/b.wav,valid,\n"
        '"dog, old",audio/c.wav,test,NA\n',
    )
    rows = read_manifest(table, needs=("path", "label", "split"))
    assert [row["label"] for row in rows] == ["nan", "007", "dog, old"]
    assert [row["corpus"] for row in rows] == ["x", "", "NA"]
    assert [row["path"] for row in rows] == [
        str(corpus / "audio" / f"{name}.wav") for name in "abc"
    ]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_line_ends_byte_order_mark_and_blank_lines(corpus, end, encoding):
    lines = ["path,label", " audio/a.wav , cat", "", ",", "audio/b.wav,dog"]
    table = write_table(corpus, end.join(lines), encoding)
    rows = read_manifest(table, needs=("path", "label"))
    assert [(row["id"], row["label"]) for row in rows] == [
        ("audio/a.wav", "cat"),
        ("audio/b.wav", "dog"),
    ]


@pytest.mark.parametrize("header", ["", "path\n", "\ufeffPATH\r\n"])
def test_one_column_with_and_without_header(corpus, header):
    table = write_table(corpus, header + "audio/a.wav\naudio/b.wav\n")
    assert names(read_manifest(table)) == ["a.wav", "b.wav"]


def test_odd_paths(corpus, monkeypatch):
    monkeypatch.setenv("HOME", str(corpus))
    for name in "ü 音.wav", "a, b.wav", 'say "hi".wav':
        write_wav(corpus / name)
    table = write_table(
        corpus,
        f'path\nü 音.wav\n"a, b.wav"\n"say ""hi"".wav"\n~/audio/a.wav\n'
        f"{corpus}/audio/b.wav\nx/../audio/c.wav\n",
    )
    paths = [row["path"] for row in read_manifest(table)]
    assert paths == [
        str(corpus / name)
        for name in (
            "ü 音.wav",
            "a, b.wav",
            'say "hi".wav',
            "audio/a.wav",
            "audio/b.wav",
            "audio/c.wav",
        )
    ]


def test_root_of_relative_paths(corpus, monkeypatch):
    lists = corpus / "lists"
    lists.mkdir()
    table = write_table(lists, "path\na.wav\n")
    assert names(read_manifest(table, root=corpus / "audio")) == ["a.wav"]
    monkeypatch.chdir(corpus)
    (row,) = read_manifest("lists/table.csv", root="audio")
    assert row["path"] == str(corpus / "audio" / "a.wav")


def test_columns_under_other_names(corpus):
    table = write_table(
        corpus, "path,label,Speaker,fold\naudio/a.wav,yes,anna,train\n"
    )
    (row,) = read_manifest(
        table,
        needs=("path", "label", "split"),
        columns={"label": "Speaker", "split": "fold"},
    )
    assert (row["label"], row["split"]) == ("anna", "train")


@pytest.mark.parametrize(
    ("header", "asked", "expected"),
    [
        ("path,label,split,Label", "label", "b"),
        ("path,label,split,Label", "Label", "d"),
        ("path,Label,split,other", "LABEL", "b"),
        ("path,1,2024-01-01,True", 1, "b"),
        ("path,1,2024-01-01,True", datetime.date(2024, 1, 1), "c"),
        ("path,1,2024-01-01,True", True, "d"),
    ],
)
def test_the_column_that_is_asked_for_is_taken(corpus, header, asked, expected):
    table = write_table(corpus, f"{header}\naudio/a.wav,b,c,d\n")
    (row,) = read_manifest(table, ("path", "label"), columns={"label": asked})
    assert row["label"] == expected


@pytest.mark.parametrize(
    ("header", "asked", "told"),
    [
        (
            "path,label,split,label",
            "label",
            "label (column 2), label (column 4)",
        ),
        ("path,Label,x,LABEL", "label", "Label (column 2), LABEL (column 4)"),
        # Nobody asks for these, but others may be told from them later.
        ("path,label,note,note", "label", "note (column 3), note (column 4)"),
        ("path,label,Split,SPLIT", "label", "Split (column 3), SPLIT (col"),
    ],
)
def test_columns_named_twice(corpus, header, asked, told):
    table = write_table(corpus, f"{header}\naudio/a.wav,b,c,d\n")
    with pytest.raises(ManifestError, match=re.escape(told)) as caught:
        read_manifest(table, ("path", "label"), columns={"label": asked})
    assert str(caught.value).startswith(f"{table}: columns of the same name")
    assert "\n" not in str(caught.value)


def test_columns_without_a_name_are_left_out(corpus):
    table = write_table(corpus, ",path,label,\n0,audio/a.wav,b,\n")
    (row,) = read_manifest(table, ("path", "label"))
    assert row.keys() == {"path", "label", "id"}


@pytest.mark.parametrize(
    ("header", "asked", "told"),
    [
        ("path,label", None, "the column of label has no name"),
        ("path,label", "", "the column of label has no name"),
        ("path,010", 10, "no column 10; .*10 was read as int: quote a name"),
        ('path, "label"', "label", r"""'"label"' is not 'label': mend"""),
        ("path,label", " label", "'label' is not ' label': mend"),
        ("path,e\u0301", "\u00e9", r"'e\\u0301' is not '\\xe9': mend"),
        ("path\tlabel", "label", "separated by commas; here .* by tabs"),
        ('"path";"label"', "label", "by commas; here .* by semicolons"),
        ("path,other", "label", "separated by commas$"),
        ("path\tother", "label", "separated by commas$"),
    ],
)
def test_why_a_column_is_not_found(corpus, header, asked, told):
    table = write_table(corpus, f"{header}\naudio/a.wav,b\n")
    with pytest.raises(ManifestError, match=told) as caught:
        read_manifest(table, ("path", "label"), columns={"label": asked})
    assert "\n" not in str(caught.value)


def test_tabs_where_only_the_path_is_asked_for(corpus):
    table = write_table(corpus, "path\tlabel\naudio/a.wav\tdog\n")
    with pytest.raises(ManifestError, match="; here .* separated by tabs"):
        read_manifest(table)
    table = write_table(corpus, "audio/a.wav\tdog\n")
    with pytest.raises(ManifestError, match=r"line 1: .*commas, not tabs\)"):
        read_manifest(table)


@pytest.mark.parametrize(
    ("there", "written", "told"),
    [
        ("audio/a.wav", "audio\\a.wav", "write / in place of"),
        ("audio/a.wav", "audio/a.wav\tdog", "by commas, not tabs"),
        ("audio/a.wav", "audio/a.wav;dog", "by commas"),
        ("audio/a.wav", "'audio/a.wav'", "leave out the quotes"),
        ("audio/a.wav", '"""audio/a.wav"""', "leave out the quotes"),
        ("x .wav ", "x .wav", "ends with a blank there: rename it"),
        (" x.wav", "x.wav", "starts with a blank there: rename it"),
        ("\u00e9.wav", "e\u0301.wav", "NFC"),
        ("e\u0301.wav", "\u00e9.wav", "NFD"),
        ("audio/a.wav", "audio/b\u00e9.wav", None),
        ("audio/a.wav", "audio\\none.wav", None),
    ],
)
def test_why_a_file_is_not_found(corpus, there, written, told):
    # The folder of the table may have another form than a cell.
    folder = corpus / "cafe\u0301"
    (folder / "audio").mkdir(parents=True)
    (folder / there).touch()
    table = write_table(folder, f"path,label\n{written},dog\n")
    with pytest.raises(ManifestError) as caught:
        read_manifest(table)
    title, problem = str(caught.value).split("\n  ")
    assert "line 2: no such file: " in problem
    if told is None:
        assert problem.endswith(".wav")
    else:
        assert problem.endswith(")") and told in problem


def test_a_label_that_cannot_be_saved_is_told_with_its_line(corpus):
    table = write_table(
        corpus,
        "path,label,note\naudio/a.wav,dog,x => y\naudio/b.wav,a => b;dog,\n",
    )
    with pytest.raises(ManifestError) as caught:
        read_manifest(table, ("path", "label"))
    assert str(caught.value) == (
        f'{table}: 1 bad line\n  line 3: label "a => b;dog" cannot be saved: '
        'replace the " => " in it'
    )
    # Without labels it is text as any other.
    assert len(read_manifest(table)) == 2


# Text that a label file might take for something else.
LABELS = (
    *("dog", "", "=> a", "a =>", "a=>b", "a =>\tb", "=" * 16, "'q'", '"q"'),
    *("'\"both\"'", "back\\", "\\n", "a\nb", "a\r\nb", "\u2028", "\x85", "\0"),
    *(
        " lead",
        "trail ",
        "\udce4",
        "\u00e9",
        "e\u0301",
        "1",
        "True",
        "None",
        "{}",
    ),
    *("a => b", "a  => b", " => ", "a => ", " => b", "'a' => 'b'"),
)


@pytest.mark.parametrize("label", LABELS, ids=ascii)
def test_labels_that_are_accepted_come_back(label, tmp_path):
    path = tmp_path / "labels.txt"
    encoder, loaded = CategoricalEncoder(), CategoricalEncoder()
    encoder.update_from_iterable([label, "other"])
    encoder.save(path)
    try:
        loaded.load(path)
    except ValueError:
        assert label_problem(label) is not None
    else:
        assert loaded.lab2ind == encoder.lab2ind
        assert label_problem(label) is None


def test_id_column(corpus):
    table = write_table(
        corpus, "ID,path\nclip1,audio/a.wav\n,audio/b.wav\nclip1,audio/c.wav\n"
    )
    with pytest.raises(ManifestError, match="line 4: same id as line 2"):
        read_manifest(table)


def test_all_bad_rows_in_one_error(corpus):
    table = write_table(
        corpus,
        "path,label,split\n"
        "audio/a.wav,cat,train\n"
        "audio/b.wav,,train\n"
        "\n"
        "audio/c.wav,dog,dev\n"
        "audio/nowhere.wav,dog,test\n"
        "audio,dog,test\n"
        "audio/../audio/a.wav,cat,test\n"
        "audio/a, b.wav,cat,test\n"
        ",,train\n"
        "audio/d.wav,cat,test\n",
    )
    with pytest.raises(ManifestError) as caught:
        read_manifest(table, needs=("path", "label", "split"))
    title, *problems = str(caught.value).split("\n  ")
    assert title == f"{table}: 7 bad lines"
    expected = [
        "line 3: no label",
        'line 5: split "dev" is none of train, valid, test',
        f"line 6: no such file: {corpus}/audio/nowhere.wav",
        f"line 7: no such file: {corpus}/audio",
        f"line 8: same file as line 2: {corpus}/audio/a.wav",
        "line 9: 4 cells under 3 columns (text with commas must stand in "
        "double quotes)",
        "line 10: no path, label",
    ]
    assert problems == expected


def test_a_long_list_of_bad_rows_is_cut(tmp_path):
    lines = "".join(f"{number}.wav\n" for number in range(1000))
    with pytest.raises(ManifestError) as caught:
        read_manifest(write_table(tmp_path, lines))
    shown = str(caught.value).split("\n")
    assert "1000 bad lines" in shown[0]
    assert len(shown) == 22 and "... and 980 more" in shown[-1]


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "the manifest is empty"),
        ("\n,,\n", "the manifest is empty"),
        ("file,label\nx.wav,a\n", "no column path, split; .* has file, label"),
        (
            "path,label\nx.wav,a\n",
            "no column split; .*; split has train, valid or",
        ),
        ("path\tlabel\tsplit\n", "no column path.* separated by commas"),
        ("path,label,split\n", "no rows"),
    ],
)
def test_unusable_manifests(tmp_path, text, message):
    with pytest.raises(ManifestError, match=message):
        read_manifest(
            write_table(tmp_path, text), needs=("path", "label", "split")
        )


def test_unusable_files(tmp_path):
    with pytest.raises(ManifestError, match=r"none\.csv: No such file"):
        read_manifest(tmp_path / "none.csv")
    with pytest.raises(ManifestError, match="save it as"):
        read_manifest(write_table(tmp_path, "path\nä.wav\n", "latin-1"))


def test_split_is_checked_only_where_it_is_asked_for(corpus):
    table = write_table(corpus, "path,split\naudio/a.wav,dev\n")
    assert read_manifest(table)[0]["split"] == "dev"
    with pytest.raises(ManifestError, match='line 2: split "dev"'):
        read_manifest(table, columns={"split": "split"})


def test_a_split_that_is_asked_for_but_not_needed_may_be_blank(corpus):
    table = write_table(corpus, "path,fold\naudio/a.wav,\naudio/b.wav,test\n")
    rows = read_manifest(table, columns={"split": "fold"})
    assert [row["split"] for row in rows] == ["", "test"]
    with pytest.raises(ManifestError, match="line 2: no split"):
        read_manifest(table, ("path", "split"), columns={"split": "fold"})


@pytest.mark.parametrize(
    "cells, expected",
    [
        ({}, False),
        ({"split": "train", "label": "test"}, False),
        ({"split": "", "split_speaker": "train"}, False),
        ({"split": "train", "split_speaker": "valid"}, True),
        ({"split_a": "test", "split_b": "train", "split_c": ""}, True),
    ],
)
def test_held_out_by_any_split(cells, expected):
    assert held_out({"id": "a", "path": "/a.wav", **cells}) is expected


@pytest.mark.parametrize("value", ["dev", "Test", "1"])
def test_held_out_takes_known_splits_only(value):
    row = {"id": "clip7", "split": "test", "split_speaker": value}
    message = f'clip7: "{value}" in column split_speaker; use train, valid'
    with pytest.raises(ManifestError, match=message):
        held_out(row)


def test_index_rows_and_labels():
    rows = [{"id": "x", "path": "/x.wav"}, {"id": "y", "path": "/y.wav"}]
    assert index_rows(rows) == {
        "x": {"path": "/x.wav"},
        "y": {"path": "/y.wav"},
    }
    assert split_labels(" dog;old cat ;; ") == ["dog", "old cat"]
    assert split_labels("") == []


# --- scanning headers


def listed(output_folder):
    lines = (output_folder / "unreadable.csv").read_text().splitlines()
    assert lines[0] == "path,reason"
    return lines[1:]


def test_prepare_sets_aside_what_cannot_be_used(corpus):
    (corpus / "audio" / "b.wav").write_text("not audio")
    (corpus / "audio" / "c.wav").write_bytes(b"")
    write_wav(corpus / "audio" / "d.wav", seconds=0.02)
    rows = folder_rows(corpus)
    kept, unreadable = scan_and_write(
        rows, corpus / "out", min_seconds=0.05, max_unreadable=0.5
    )
    assert [(row["id"], row["duration"]) for row in kept] == [
        ("audio/a.wav", 0.1)
    ]
    assert [(Path(path).name, reason) for path, reason in unreadable] == [
        ("b.wav", "libsndfile cannot open it (Format not recognised.)"),
        ("c.wav", "the file is empty (0 bytes)"),
    ]
    assert len(listed(corpus / "out")) == 2
    assert "duration" not in rows[0]


def test_too_many_unreadable_files_are_an_error(corpus):
    (corpus / "audio" / "b.wav").write_text("not audio")
    rows = folder_rows(corpus)
    with pytest.raises(ManifestError) as caught:
        scan_and_write(rows, corpus / "out", max_unreadable=0.24)
    assert "1 of 4 audio files are unreadable" in str(caught.value)
    assert str(corpus / "out" / "unreadable.csv") in str(caught.value)
    assert len(listed(corpus / "out")) == 1
    scan_and_write(rows, corpus / "out", max_unreadable=0.25)


def test_nothing_left_is_an_error(corpus):
    with pytest.raises(ManifestError, match="4 are shorter than 9 s"):
        scan_and_write(folder_rows(corpus), corpus / "out", min_seconds=9)


def test_second_run_scans_only_what_changed(corpus):
    rows = folder_rows(corpus)
    first, _ = scan_and_write(rows, corpus / "out")
    audio = Path(rows[0]["path"])
    before = audio.stat()
    audio.write_bytes(bytes(before.st_size))
    os.utime(audio, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert scan_and_write(rows, corpus / "out") == (first, [])

    os.utime(audio)
    kept, unreadable = scan_and_write(rows, corpus / "out", max_unreadable=0.5)
    assert kept == first[1:] and len(unreadable) == 1


def test_mended_files_come_back(corpus):
    audio = corpus / "audio" / "b.wav"
    audio.write_bytes(b"")
    rows = folder_rows(corpus)
    kept, _ = scan_and_write(rows, corpus / "out", max_unreadable=0.5)
    assert len(kept) == 3
    write_wav(audio)
    kept, unreadable = scan_and_write(rows, corpus / "out")
    assert len(kept) == 4 and not unreadable and not listed(corpus / "out")


def test_scan_keeps_the_order_of_many_files(tmp_path):
    for number in range(60):
        write_wav(tmp_path / f"{number:02}.wav", seconds=0.01 * (number + 1))
    kept, _ = scan_and_write(folder_rows(tmp_path)[::-1], tmp_path / "out")
    durations = [round(100 * row["duration"]) for row in kept]
    assert durations == list(range(60, 0, -1))


def test_check_unreadable_counts_each_file_once(tmp_path):
    path = tmp_path / "unreadable.csv"
    path.write_text('path,reason\na.wav,x\n"b, c.wav",y\na.wav,z\n')
    assert check_unreadable(path, 10, 0.2) == 2
    with pytest.raises(ManifestError, match="2 of 10"):
        check_unreadable(path, 10, 0.1)
    # 0.29 * 100 is less than 29 in floating point.
    path.write_text("".join(f"{n}.wav,x\n" for n in range(29)))
    assert check_unreadable(path, 100, 0.29) == 29


@pytest.mark.parametrize(
    "error, told",
    [
        (OSError(28, "No space"), "[Errno 28] No space: 'a.txt'"),
        (OSError(2, "No such", "b.txt"), "[Errno 2] No such: 'b.txt'"),
        (OSError("not seekable"), "a.txt: not seekable"),
        (OSError(), "a.txt: "),
    ],
)
def test_errors_of_writing_name_the_file_once(error, told):
    with pytest.raises(OSError) as caught, filename_in_errors("a.txt"):
        raise error
    assert str(caught.value) == told
