"""Files of a hub, from a small server on this machine: listing, fetching, resuming and refusals."""

import errno
import importlib
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import huggingface_hub.utils._cache_assets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.hub_server import COMMIT, OLDER, Hub
from helpers.reading import check_every_start

from jaxgpt.data import hub, tokenizer
from jaxgpt.errors import ConfigError, DataError, JaxgptError, StorageError
from jaxgpt.prepare.sources import checksum, estimate, find_sources, read
from jaxgpt.utils.progress import ProgressReporter

TEXTS = [f"document {n} " * 40 for n in range(200)]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with three parquet files and others, and a library that asks it and keeps what it fetches in `tmp_path`."""
    monkeypatch.setattr(huggingface_hub.utils._cache_assets, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(hub, "BLOCK_BYTES", 1000)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with Hub() as server:
        for name in ("data/000.parquet", "data/001.parquet", "data/more/002.parquet"):
            pq.write_table(pa.table({"text": [name, *TEXTS]}), tmp_path / "made.parquet", row_group_size=50)
            server.files[name] = (tmp_path / "made.parquet").read_bytes()
        server.files["README.md"] = b"read me"
        server.files["lines.jsonl"] = b'{"text": "a"}\n{"text": "b"}\n'
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def refused(kind: type[JaxgptError], code: str, name: str) -> JaxgptError:
    with pytest.raises(kind) as caught:
        [list(read(source)) for source in find_sources([name])]
    assert caught.value.code == code, caught.value
    assert "\n" not in caught.value.message
    assert caught.value.help
    return caught.value


# --- finding and fetching --------------------------------------------------------------------------------------------


def test_files_are_listed_first_and_fetched_when_needed(server: Hub, tmp_path: Path) -> None:
    file = find_sources(["hf://datasets/o/n/data/*.parquet"])
    assert [source.name for source in file] == [f"hf://datasets/o/n/data/00{n}.parquet" for n in range(2)]
    assert [source.size for source in file] == [len(server.files[f"data/00{n}.parquet"]) for n in range(2)]
    assert [source.kind for source in file] == ["parquet"] * 2
    assert not list(tmp_path.rglob("*.parquet")) or list(tmp_path.rglob("*.parquet")) == [tmp_path / "made.parquet"]
    assert file[0].local().read_bytes() == server.files["data/000.parquet"]
    assert file[0].local() == file[0].path
    assert not file[1].path.exists()
    check_every_start(file[1], ["data/001.parquet", *TEXTS])


@pytest.mark.parametrize(
    ("pattern", "names"),
    {
        "data/000.parquet": ["data/000.parquet"],
        "data/**/*.parquet": ["data/000.parquet", "data/001.parquet", "data/more/002.parquet"],
        "**/00?.parquet": ["data/000.parquet", "data/001.parquet", "data/more/002.parquet"],
        "*/*/*": ["data/more/002.parquet"],
        "lines.jsonl": ["lines.jsonl"],
    }.items(),
)
def test_glob_patterns(server: Hub, pattern: str, names: list[str]) -> None:
    assert [file.name for file in hub.find_files(f"hf://datasets/o/n/{pattern}")] == names


def test_revisions_and_commits(server: Hub) -> None:
    (main,) = hub.find_files("hf://datasets/o/n/data/000.parquet")
    assert main.commit == COMMIT
    for revision in ("refs/convert/parquet", "refs%2Fconvert%2Fparquet", OLDER):
        (older,) = hub.find_files(f"hf://datasets/o/n@{revision}/data/000.parquet")
        assert (older.commit, older.path != main.path) == (OLDER, True)
    assert "no such revision" in refused(DataError, "D023", "hf://datasets/o/n@none/data/*").message


def test_text_and_json_files_from_a_hub(server: Hub) -> None:
    (lines,) = find_sources(["hf://datasets/o/n/lines.jsonl"])
    check_every_start(lines, ["a", "b"])
    (text,) = find_sources(["hf://datasets/o/n/README.md"])
    check_every_start(text, ["read me"])


def test_estimate_and_column_check_before_fetching(server: Hub) -> None:
    (file,) = find_sources(["hf://datasets/o/n/data/000.parquet"])
    before = estimate(file)
    assert not file.path.exists()
    assert (before.documents, before.text_bytes > 0) == (201, True)
    texts = [str(text) for batch in read(file) for text in batch.texts]
    assert estimate(file).text_bytes == sum(map(len, texts))
    assert len(checksum(file)) == 32
    pq.write_table(pa.table({"title": ["t"], "body": ["b"]}), file.path)
    server.files["data/other.parquet"] = file.path.read_bytes()
    error = refused(DataError, "D020", "hf://datasets/o/n/data/other.parquet")
    assert "hf://datasets/o/n/data/other.parquet: no column 'text'" in error.message


def test_token_is_sent(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    find_sources(["hf://datasets/o/n/data/000.parquet"])[0].local()
    assert {authorization for *_, authorization in server.asked} == {"Bearer hf_secret"}


# --- resuming --------------------------------------------------------------------------------------------------------


def ranges(first: int, size: int) -> list[str]:
    return [f"{start}-{min(start + 1000, size) - 1}" for start in range(first, size, 1000)]


def test_dropped_connection_is_resumed(server: Hub) -> None:
    (file,) = hub.find_files("hf://datasets/o/n/data/000.parquet")
    server.drops = {3}
    assert hub.fetch(file).read_bytes() == server.files["data/000.parquet"]
    expected = ranges(0, file.size)
    assert server.ranges() == [*expected[:4], expected[3], *expected[4:]]


def test_interrupted_download_resumes_in_the_next_call(server: Hub) -> None:
    (file,) = hub.find_files("hf://datasets/o/n/data/000.parquet")
    server.refuses = {3: 403}
    with pytest.raises(ConfigError, match="C035"):
        hub.fetch(file)
    assert not file.path.exists()
    server.asked.clear()
    assert hub.fetch(file).read_bytes() == server.files["data/000.parquet"]
    assert server.ranges() == ranges(3000, file.size)
    server.asked.clear()
    hub.fetch(file)
    assert server.asked == []
    assert [path.name for path in file.path.parent.iterdir()] == ["000.parquet"]


def test_ctrl_c_keeps_the_partial_download(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    (file,) = hub.find_files("hf://datasets/o/n/data/000.parquet")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(hub.DownloadProgress, "advance", interrupt)
        with pytest.raises(KeyboardInterrupt):
            hub.fetch(file)
    server.asked.clear()
    hub.fetch(file)
    assert server.ranges() == ranges(1000, file.size)


def test_downloads_are_verified(server: Hub) -> None:
    for name in ("data/000.parquet", "lines.jsonl"):
        (file,) = hub.find_files(f"hf://datasets/o/n/{name}")
        server.lies = True
        with pytest.raises(DataError, match=r"D038.*what arrived has another (sha256|git's sha1) than the hub says"):
            hub.fetch(file)
        assert [path for path in file.path.parent.iterdir() if path.is_file()] == []
        server.lies = False
        assert hub.fetch(file).read_bytes() == server.files[name]


def test_concurrent_fetches_download_once(server: Hub) -> None:
    (file,) = hub.find_files("hf://datasets/o/n/data/000.parquet")
    threads = [threading.Thread(target=hub.fetch, args=(file,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert file.path.read_bytes() == server.files["data/000.parquet"]
    assert server.ranges() == ranges(0, file.size)


def test_waiting_fetch_survives_a_failed_check(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    (file,) = hub.find_files("hf://datasets/o/n/data/000.parquet")
    check = hub._check
    results: list[Path] = []
    waiting = threading.Thread(target=lambda: results.append(hub.fetch(file)))

    def check_while_another_waits(file: hub.HubFile, partial: Path) -> None:
        if server.lies:
            waiting.start()
            time.sleep(0.5)
            server.lies = False
        check(file, partial)

    monkeypatch.setattr(hub, "_check", check_while_another_waits)
    server.lies = True
    with pytest.raises(DataError, match="D038"):
        hub.fetch(file)
    waiting.join()
    assert results == [file.path]
    assert file.path.read_bytes() == server.files["data/000.parquet"]


def test_progress_is_one_line_without_a_terminal(server: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    (file,) = hub.find_files("hf://datasets/o/n/data/000.parquet")
    with ProgressReporter():
        hub.fetch(file)
    assert capsys.readouterr().err.splitlines() == [f"fetching {file}: {file.size / 1000:.1f} kB"]


# --- refusals --------------------------------------------------------------------------------------------------------


def test_impossible_names_are_refused(server: Hub) -> None:
    for name in ("hf://o/n/x.parquet", "hf://datasets/o/n", "hf://datasets/o/n/", "hf://models/o/n/x.parquet"):
        assert "hf://datasets/OWNER/NAME" in refused(DataError, "D023", name).help
    assert server.asked == []


def test_missing_files_and_repositories(server: Hub) -> None:
    error = refused(DataError, "D023", "hf://datasets/o/n/data/*.json")
    assert error.message == "no file of o/n on the hub matches 'data/*.json'"
    assert "its files: data/000.parquet" in error.help
    assert "the hub has no such repository" in refused(DataError, "D023", "hf://datasets/o/none/x.parquet").message


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (401, "", "hf://datasets/o/n/x.parquet does not exist on the hub, or is private (401)"),
        (403, "", "the hub refuses access to hf://datasets/o/n/x.parquet (403)"),
        (403, "GatedRepo", "the hub refuses access to hf://datasets/o/n/x.parquet (403)"),
    ],
)
def test_denied_access(server: Hub, monkeypatch: pytest.MonkeyPatch, status: int, code: str, message: str) -> None:
    server.status, server.error_code = status, code
    error = refused(ConfigError, "C035", "hf://datasets/o/n/x.parquet")
    assert error.message == message
    assert "HF_TOKEN is not set" in error.help
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert "HF_TOKEN is set" in refused(ConfigError, "C035", "hf://datasets/o/n/x.parquet").help


def test_unreachable_hub(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    server.status = 500
    error = refused(ConfigError, "C036", "hf://datasets/o/n/x.parquet")
    assert error.message == f"cannot fetch hf://datasets/o/n/x.parquet from {server.url}: status 500"
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    error = refused(ConfigError, "C036", "hf://datasets/o/n/x.parquet")
    assert "from http://127.0.0.1:9: " in error.message
    assert "check the network and HF_ENDPOINT" in error.help


def test_missing_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    importlib.invalidate_caches()
    assert "pip install 'jaxgpt[hub]'" in refused(ConfigError, "C034", "hf://datasets/o/n/x.parquet").help
    with pytest.raises(ConfigError, match="C034"):
        tokenizer.load("o/t")


def test_full_disk(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    (file,) = hub.find_files("hf://datasets/o/n/data/000.parquet")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(hub.DownloadProgress, "advance", full)
    with pytest.raises(StorageError, match=r"S011.*the disk is full: hf://datasets/o/n/data/000.parquet"):
        hub.fetch(file)


# --- tokenizers ------------------------------------------------------------------------------------------------------


def test_tokenizer_from_the_hub(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tokenizer.train(TEXTS, 300)
    made.save(tmp_path / "tokenizer.json")
    server.files["tokenizer.json"] = (tmp_path / "tokenizer.json").read_bytes()
    file = tokenizer.load("o/t")
    assert (file.name, file.fingerprint) == ("o/t", made.fingerprint)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # it is here now, and needs no network
    assert tokenizer.load("o/t").fingerprint == made.fingerprint
    with pytest.raises(ConfigError, match=r"C036.*cannot fetch o/other"):
        tokenizer.load("o/other")


def test_tokenizer_missing_on_the_hub(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("o/t", "o/none"):
        with pytest.raises(ConfigError, match=r"C026.*not found\n  help: gpt2, the path of a tokenizer.json, or OWNER"):
            tokenizer.load(name)
    server.asked.clear()
    monkeypatch.chdir(tmp_path)
    for name in ("here/none.json", "a/b/c", "../x", "./x", tmp_path / "x"):
        with pytest.raises(ConfigError, match="C026"):
            tokenizer.load(name)
    (tmp_path / "o" / "t").mkdir(parents=True)  # what is on this disk goes before the hub
    with pytest.raises(ConfigError, match="C026"):
        tokenizer.load("o/t")
    assert server.asked == []
