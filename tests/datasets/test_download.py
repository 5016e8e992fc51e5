"""Fetching, from a server on this machine: good and bad files, broken connections, none at all."""

import hashlib
import http.server
import os
import re
import sys
import threading
from pathlib import Path

import pytest

from dpq_ref.datasets import download, fetch_dataset, load_language
from dpq_ref.datasets.files import read_text

pytest.importorskip("pooch")

CONTENT = b"the cat sat\n" * 20_000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.paths.append(self.path)
        if self.path == "/missing":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[: len(CONTENT) // 2] if self.path == "/cut" else CONTENT)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    """Address of a server and the paths that were asked for."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.paths = []
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", running.paths
        running.shutdown()
        thread.join()


def test_a_good_file_is_fetched_once(server, tmp_path):
    address, paths = server
    for _ in range(2):
        file = download.fetch(f"{address}/data/a.txt", SHA256, tmp_path / "new" / "folder")
        assert file == tmp_path / "new" / "folder" / "a.txt"
        assert file.read_bytes() == CONTENT
    assert paths == ["/data/a.txt"]
    assert list(file.parent.iterdir()) == [file]


def test_a_damaged_file_is_fetched_anew(server, tmp_path):
    (tmp_path / "a.txt").write_bytes(CONTENT[:-1])
    assert download.fetch(f"{server[0]}/a.txt", SHA256.upper(), tmp_path).read_bytes() == CONTENT


def test_wrong_content(server, tmp_path):
    with pytest.raises(ValueError, match=f"/a.txt: .*{'0' * 64}.*{SHA256}"):
        download.fetch(f"{server[0]}/a.txt", "0" * 64, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_wrong_content_leaves_what_was_there(server, tmp_path):
    (tmp_path / "a.txt").write_text("mine")
    with pytest.raises(ValueError, match=SHA256):
        download.fetch(f"{server[0]}/a.txt", "0" * 64, tmp_path)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("path", ["cut", "missing"])
def test_no_whole_file(server, tmp_path, path):
    with pytest.raises(
        ConnectionError, match=rf"cannot fetch {server[0]}/{path} \(a copy .*{tmp_path}/{path}"
    ):
        download.fetch(f"{server[0]}/{path}", SHA256, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_offline(server, tmp_path, monkeypatch):
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as closed:
        port = closed.server_port
    with pytest.raises(ConnectionError, match=f"cannot fetch http://127.0.0.1:{port}/a.txt"):
        download.fetch(f"http://127.0.0.1:{port}/a.txt", SHA256, tmp_path)
    (tmp_path / "a.txt").write_bytes(CONTENT)  # by hand
    assert download.fetch(f"http://127.0.0.1:{port}/a.txt", SHA256, tmp_path).read_bytes() == CONTENT


def test_interrupted(server, tmp_path, monkeypatch):
    import pooch

    def die(self, url, output_file, *arguments):
        Path(output_file).write_bytes(CONTENT[:1000])
        raise KeyboardInterrupt

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", die)
    with pytest.raises(KeyboardInterrupt):
        download.fetch(f"{server[0]}/a.txt", SHA256, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_progress_bar_on_a_terminal_only(server, tmp_path, monkeypatch, capsys):
    download.fetch(f"{server[0]}/a.txt", SHA256, tmp_path)
    assert "%" not in capsys.readouterr().err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    download.fetch(f"{server[0]}/b.txt", SHA256, tmp_path)
    out, err = capsys.readouterr()
    assert out == "" and "100%" in err


def test_without_pooch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(ModuleNotFoundError, match=re.escape("dpq-ref[data]")):
        download.fetch("http://127.0.0.1/a.txt", SHA256, tmp_path)


def test_a_set(server, tmp_path, monkeypatch):
    address, paths = server
    files = {f"{address}/tiny.{split}.txt": SHA256 for split in ("train", "valid", "test")}
    monkeypatch.setitem(download.SETS, "tiny", files)
    assert fetch_dataset("tiny", tmp_path) == tmp_path / "tiny"
    assert load_language(tmp_path / "tiny").vocabulary == ("<eos>", "cat", "sat", "the")
    monkeypatch.setenv("DPQ_REF_CACHE", str(tmp_path))
    fetch_dataset("tiny")
    assert paths == ["/tiny.train.txt", "/tiny.valid.txt", "/tiny.test.txt"]
    with pytest.raises(ValueError, match="name='imagenet'; takes one of ptb, wikitext-2"):
        fetch_dataset("imagenet")


@pytest.mark.skipif("DPQ_REF_DATA" not in os.environ, reason="DPQ_REF_DATA names no folder of data")
@pytest.mark.parametrize("name", ["ptb", "wikitext-2"])
def test_digests_are_those_of_the_real_files(name):
    data = Path(os.environ["DPQ_REF_DATA"], name)
    for url, digest in download.SETS[name].items():
        (file,) = data.glob(f"*{url.rsplit('/')[-1].split('.')[-2]}.*")
        assert hashlib.sha256(read_text(file).encode()).hexdigest() == digest
