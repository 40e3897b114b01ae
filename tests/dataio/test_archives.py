"""Archives over a loopback server: broken, resumed, wrong, and hostile."""

import gzip
import hashlib
import io
import os
import shutil
import struct
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from full_disk import full_disk

from ssast_lobes.dataio.archives import find_archive, unpack
from ssast_lobes.dataio.corpus_checks import check_counts, check_layout, tally
from ssast_lobes.dataio.download import ArchiveError, download
from ssast_lobes.dataio.tables import ManifestError

CONTENT = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT; breaks off after `most` bytes of an answer."""

    most = None
    ranges = True
    says_length = True
    asked = ()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/data.zip"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server, wanted = self.server, self.headers.get("Range")
        server.asked = (*server.asked, wanted)
        if "data.zip" not in self.path:
            return self.send_error(404, "Not there")
        start = 0
        if wanted and server.ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if start >= len(CONTENT):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if start else 200)
        if start:
            end = len(CONTENT) - 1
            place = f"bytes {start}-{end}/{len(CONTENT)}"
            self.send_header("Content-Range", place)
        body = CONTENT[start:]
        if server.says_length:
            self.send_header("Content-Length", str(len(body)))
        else:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        part = body[: server.most]
        if not server.says_length:
            part = b"%x\r\n%s\r\n" % (len(part), part)
            part += b"0\r\n\r\n" if server.most is None else b""
        self.wfile.write(part)
        self.close_connection = True

    def log_message(self, *words):
        pass


@pytest.fixture
def server():
    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("sums", [{"sha256": SHA256}, {"md5": MD5}, {}])
def test_download(server, tmp_path, sums):
    path = download(server.url, tmp_path / "new" / "data.zip", **sums)
    assert path.read_bytes() == CONTENT
    assert os.listdir(path.parent) == ["data.zip"]
    download(server.url, path, **sums)
    assert server.asked == (None,)


@pytest.mark.parametrize("says_length", [True, False])
def test_broken_transfer_goes_on_where_it_was(server, tmp_path, says_length):
    server.most, server.says_length = 70_000, says_length
    path = download(server.url, tmp_path / "data.zip", SHA256)
    assert path.read_bytes() == CONTENT
    starts = [f"bytes={70_000 * part}-" for part in range(1, 5)]
    assert server.asked[:5] == (None, *starts)


def test_killed_download_goes_on(server, tmp_path):
    (tmp_path / "data.zip.part").write_bytes(CONTENT[:1000])
    assert download(server.url, tmp_path / "data.zip").read_bytes() == CONTENT
    assert server.asked == ("bytes=1000-",)


def test_all_had_come_before_the_kill(server, tmp_path):
    (tmp_path / "data.zip.part").write_bytes(CONTENT)
    path = download(server.url, tmp_path / "data.zip", SHA256)
    assert path.read_bytes() == CONTENT


def test_leftover_longer_than_the_file(server, tmp_path):
    (tmp_path / "data.zip.part").write_bytes(2 * CONTENT)
    path = download(server.url, tmp_path / "data.zip", SHA256)
    assert path.read_bytes() == CONTENT


def test_server_without_ranges(server, tmp_path):
    server.ranges = False
    (tmp_path / "data.zip.part").write_bytes(b"something else")
    path = download(server.url, tmp_path / "data.zip", SHA256)
    assert path.read_bytes() == CONTENT


def test_transfer_that_does_not_get_on(server, tmp_path):
    server.ranges, server.most = False, 5000
    with pytest.raises(ArchiveError, match="breaks off after 5000 bytes"):
        download(server.url, tmp_path / "data.zip")
    assert not (tmp_path / "data.zip").exists()
    assert (tmp_path / "data.zip.part").stat().st_size == 5000


@pytest.mark.parametrize("sums", [{"sha256": 64 * "0"}, {"md5": 32 * "0"}])
def test_wrong_checksum(server, tmp_path, sums):
    with pytest.raises(ArchiveError, match="not the published 000"):
        download(server.url, tmp_path / "data.zip", **sums)
    assert not os.listdir(tmp_path)
    (tmp_path / "data.zip").write_bytes(b"half of it")
    with pytest.raises(ArchiveError, match="delete the file"):
        download(server.url, tmp_path / "data.zip", **sums)


def test_nothing_there(server, tmp_path):
    url = server.url.replace("data", "other")
    with pytest.raises(ArchiveError, match="404 Not there.*other means to"):
        download(url, tmp_path / "other.zip")
    server.shutdown()
    server.server_close()
    with pytest.raises(ArchiveError, match="refused"):
        download(url, tmp_path / "other.zip")


# Unpacking ----------------------------------------------------------------

FILES = {"data/a.txt": b"one", "data/deep/b.txt": b"two", "top.txt": b"three"}


def zipped(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def tarred(path, files, **kind):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            for key, value in kind.items():
                setattr(member, key, value)
            archive.addfile(member, io.BytesIO(content))
    return path


MAKERS = pytest.mark.parametrize(
    ("make", "name"), [(zipped, "a.zip"), (tarred, "a.tar.gz")]
)


def test_a_full_disk_is_no_broken_transfer(tmp_path):
    (tmp_path / "served.zip").write_bytes(CONTENT)
    url, path = (tmp_path / "served.zip").as_uri(), tmp_path / "data.zip"
    with full_disk(100_000), pytest.raises(OSError, match="large.*data.zip"):
        download(url, path)
    assert download(url, path, sha256=SHA256).read_bytes() == CONTENT


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name[0] != "."
    }


@MAKERS
def test_unpack_next_to_other_files(make, name, tmp_path):
    archive, folder = make(tmp_path / name, FILES), tmp_path / "out"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "mine.txt").write_text("mine")
    unpack(archive, folder)
    assert contents(folder) == {**FILES, "data/mine.txt": b"mine"}
    # A second time it only looks: what people changed since then stays.
    (folder / "top.txt").write_text("changed")
    unpack(archive, folder)
    assert (folder / "top.txt").read_text() == "changed"
    # What is gone comes back.
    shutil.rmtree(folder / "data")
    unpack(archive, folder)
    assert contents(folder) == FILES


def test_a_tar_that_ends_with_a_zip_is_a_tar(tmp_path):
    inner = zipped(tmp_path / "inner.zip", {"inner.txt": b"inner"}).read_bytes()
    files = {"first.txt": b"first", "last.zip": inner}
    packed = tarred(tmp_path / "corpus.tar.gz", files).read_bytes()
    archive = tmp_path / "corpus.tar"
    archive.write_bytes(gzip.decompress(packed))
    assert zipfile.is_zipfile(archive)
    unpack(archive, tmp_path / "out")
    assert contents(tmp_path / "out") == files


@MAKERS
def test_interrupted_unpacking_is_completed(make, name, tmp_path):
    archive, folder = make(tmp_path / name, FILES), tmp_path / "out"
    leftover = folder / f".{name}.partial"
    leftover.mkdir(parents=True)
    (leftover / "half.txt").write_text("half")
    (folder / "top.txt").write_text("hal")
    unpack(archive, folder)
    assert contents(folder) == FILES
    assert not leftover.exists()


@MAKERS
@pytest.mark.parametrize(
    "bad", ["../evil.txt", "/evil.txt", "a/../../evil.txt", "C:\\evil.txt"]
)
def test_nothing_is_written_outside(make, name, bad, tmp_path):
    archive = make(tmp_path / name, {**FILES, bad: b"evil"})
    with pytest.raises(ArchiveError, match="outside of its folder"):
        unpack(archive, tmp_path / "deep" / "out")
    assert not contents(tmp_path / "deep")
    assert not list(tmp_path.rglob("evil*"))


def test_links_are_refused(tmp_path):
    link = {"type": tarfile.SYMTYPE, "linkname": "/etc", "size": 0}
    archive = tarred(tmp_path / "a.tar.gz", {"link": b""}, **link)
    with pytest.raises(ArchiveError, match="link is a link"):
        unpack(archive, tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        member = zipfile.ZipInfo("link")
        member.external_attr = 0o120777 << 16
        file.writestr(member, "/etc")
    with pytest.raises(ArchiveError, match="link is a link"):
        unpack(tmp_path / "a.zip", tmp_path / "out")


@MAKERS
def test_damaged_archive(make, name, tmp_path):
    archive = make(tmp_path / name, {"data/a.txt": CONTENT})
    whole = archive.read_bytes()
    middle = len(whole) // 2
    for damage in (
        whole[:middle] + b"#####" + whole[middle + 5 :],
        whole[:middle],
        b"an error page",
    ):
        archive.write_bytes(damage)
        with pytest.raises(ArchiveError, match="a\\.(zip|tar\\.gz): "):
            unpack(archive, tmp_path / "out")
        assert not contents(tmp_path / "out")


def test_missing_archive(tmp_path):
    with pytest.raises(ArchiveError, match="no such archive"):
        unpack(tmp_path / "a.zip", tmp_path)


# Checks -------------------------------------------------------------------


def test_layout(tmp_path):
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "table.csv").touch()
    check_layout(tmp_path, ["meta", "meta/table.csv"], "the page")
    with pytest.raises(ManifestError) as error:
        check_layout(tmp_path, ["audio", "meta", "meta/list.txt"], "the page")
    assert "missing there: audio, meta/list.txt." in str(error.value)
    assert "the archive of the page" in str(error.value)


@pytest.mark.parametrize("inside", ["", "corpus", "corpus-1.0"])
def test_archive_is_found_where_most_of_it_is(tmp_path, inside):
    layout, names = ["audio", "meta/table.csv"], ["corpus", "corpus-1.0"]
    # A folder of that name may be there for another reason.
    (tmp_path / "audio").mkdir()
    folder = tmp_path / inside
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    (folder / "meta").mkdir()
    (folder / "meta" / "table.csv").touch()
    assert find_archive(tmp_path, layout, "the page", names) == folder
    assert find_archive(folder, layout, "the page", names) == folder


def test_archive_is_fetched_if_nothing_of_it_is_there(tmp_path):
    with zipfile.ZipFile(tmp_path / "served.zip", "w") as archive:
        archive.writestr("corpus/audio/clip.wav", "whole")
    settings = {
        "url": (tmp_path / "served.zip").as_uri(),
        "file": "corpus.zip",
        "names": ["corpus"],
    }
    layout, page, folder = ["audio", "meta"], "the page", tmp_path / "data"
    with pytest.raises(ManifestError, match="--allow_download True fetches"):
        find_archive(folder, layout, page, **settings)
    assert not folder.exists()
    with pytest.raises(ManifestError, match="corpus: missing there: meta. "):
        find_archive(folder, layout, page, allow_download=True, **settings)
    (folder / "corpus.zip").unlink()
    (folder / "corpus" / "meta").mkdir()
    found = find_archive(folder, layout, page, allow_download=True, **settings)
    assert (found / "audio" / "clip.wav").read_text() == "whole"
    assert not (folder / "corpus.zip").exists()


def test_tally():
    rows = [{"fold": fold, "speaker": fold % 2} for fold in (1, 2, 3, 3)]
    assert tally(rows, "clips", "fold {fold}", speakers="speaker") == {
        "clips": 4,
        "fold 1": 1,
        "fold 2": 1,
        "fold 3": 2,
        "speakers": 2,
    }
    assert tally([], "clips", speakers="speaker") == {"speakers": 0}


def test_counts():
    published = {"train": 10, "test": 5}
    check_counts({"train": 10, "test": 5, "more": 1}, published, "the paper")
    with pytest.raises(ManifestError) as error:
        check_counts({"train": 9}, published, "the paper")
    assert "train: 9, published 10; test: 0, published 5" in str(error.value)
    assert "check_counts" not in str(error.value)


def test_directory_of_a_zip_that_points_before_its_beginning(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", b"text")
    content = bytearray(path.read_bytes())
    end = content.rindex(b"PK\x05\x06")
    place = slice(end + 16, end + 20)  # offset of the directory
    content[place] = struct.pack(
        "<I", struct.unpack("<I", content[place])[0] + 10
    )
    path.write_bytes(content)
    with pytest.raises(ArchiveError, match="cannot be unpacked"):
        unpack(path, tmp_path / "out")
