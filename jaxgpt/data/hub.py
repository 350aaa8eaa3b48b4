"""Files of a Hugging Face hub: `hf://datasets/OWNER/NAME/path`, listed at once, fetched when they are needed.

`huggingface_hub` (the extra `hub`) talks to the hub, with HF_TOKEN and HF_ENDPOINT as it knows them. Its own downloads
keep nothing of a transfer that was broken off, and a file here has gigabytes: so files are fetched in blocks, into its
folder for other programs' files, and an interrupted download goes on from the last block. What has arrived is checked
against the hash that the hub names.
"""

import errno
import fcntl
import hashlib
import importlib
import os
import re
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO

from jaxgpt.errors import ConfigError, DataError, StorageError
from jaxgpt.utils.progress import DownloadProgress

PREFIX = "hf://"
NAME_FORMAT = "hf://datasets/OWNER/NAME[@REVISION]/PATH*.parquet"
NAME = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+)(?:@(refs/(?:convert|pr)/[^/]+|[^/]+))?/(.+)")
REPOSITORY = re.compile(r"(?!\.)[\w.-]+/[\w.-]+(?<!\.json)")
BLOCK = 16_000_000  # bytes that are asked for at a time
TIMEOUT = 30.0  # seconds until a hub that says nothing counts as not there
LIBRARIES = ("huggingface_hub", "httpx", "httpcore", "requests", "urllib3")  # whose errors are about the network
MAGIC = re.compile(r"[*?]")


@dataclass(frozen=True)
class HubFile:
    """A file of one commit of a dataset repository. `digest` is its sha256, or git's sha1 for a small file."""

    repository: str
    commit: str
    name: str  # its path in the repository
    size: int
    digest: str
    path: Path  # where it is, or will be, on this disk

    @property
    def address(self) -> str:
        return f"datasets/{self.repository}@{self.commit}/{self.name}"

    def __str__(self) -> str:
        return f"{PREFIX}datasets/{self.repository}/{self.name}"


def find_files(name: str) -> list[HubFile]:
    """The files that `name` matches, in order. `*` and `?` do not match a slash, `**` matches folders.

    Raises `ConfigError` C034 without the library, C035 if the hub refuses, C036 if it cannot be reached, `DataError`
    D023 if there is no such repository, revision or file.
    """
    matched = NAME.fullmatch(name)
    if not matched:
        raise DataError("D023", f"source {name!r} is no file of a dataset on the hub", NAME_FORMAT)
    repository, revision, pattern = matched[1], urllib.parse.unquote(matched[2] or "main"), matched[3]
    with _translate_errors(name):
        api = _library().HfApi(endpoint=_endpoint())
        commit = api.repo_info(repository, repo_type="dataset", revision=revision, timeout=TIMEOUT).sha
        folder = str(PurePosixPath(*_plain_parts(pattern)))
        options = {"repo_type": "dataset", "revision": commit, "recursive": True}
        tree = list(api.list_repo_tree(repository, None if folder == "." else folder, **options))
    files, wanted = [entry for entry in tree if hasattr(entry, "size")], _compile_glob(pattern)
    found = [_file(repository, commit, entry) for entry in files if wanted.fullmatch(entry.path)]
    if not found:
        raise DataError("D023", f"no file of {repository} on the hub matches {pattern!r}", _help(files))
    return sorted(found, key=lambda file: file.name)


def _plain_parts(pattern: str) -> list[str]:
    """The folders in front that have no magic: what lies elsewhere need not be listed."""
    parts = pattern.split("/")[:-1]
    magic = next((index for index, part in enumerate(parts) if MAGIC.search(part)), len(parts))
    return parts[:magic]


def _compile_glob(pattern: str) -> "re.Pattern[str]":
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(known.get(part) or re.escape(part) for part in re.split(r"(\*\*/|\*\*|\*|\?)", pattern)))


def _file(repository: str, commit: str, entry: Any) -> HubFile:
    folder = _library().cached_assets_path("jaxgpt", namespace=f"datasets/{repository}", subfolder=commit)
    digest = entry.lfs.sha256 if entry.lfs else entry.blob_id
    parts = [part for part in PurePosixPath(entry.path).parts if part not in ("/", "..")]
    return HubFile(repository, commit, entry.path, entry.size, digest, folder.joinpath(*parts))


def _help(files: list[Any]) -> str:
    names = [entry.path for entry in files]
    return f"its files: {', '.join(names[:5])}{' …' if len(names) > 5 else ''}" if names else NAME_FORMAT


def is_downloaded(file: HubFile) -> bool:
    return file.path.is_file() and file.path.stat().st_size == file.size


def open_remote(file: HubFile) -> IO[bytes]:
    """The file on the hub, to read parts of. Raises as `find` does."""
    with _translate_errors(str(file)):
        system = _library().HfFileSystem(endpoint=_endpoint(), skip_instance_cache=True)
        options = {"block_size": 1 << 20, "size": file.size}
        remote: IO[bytes] = system.open(file.address, "rb", **options)
        return remote


def fetch(file: HubFile) -> Path:
    """The file on this disk; downloads what is still missing of it, with a bar on a terminal.

    Raises as `find` does; `StorageError` S011 if the disk is full, `DataError` D038 if what arrived is something else.
    """
    if is_downloaded(file):
        return file.path
    partial = file.path.with_name(f".{file.path.name}.partial")
    with _translate_errors(str(file)):
        file.path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("ab") as output:
            fcntl.flock(output, fcntl.LOCK_EX)  # another process may fetch it too: this one then finds it done
            if not is_downloaded(file):
                _download(file, output)
                _check(file, partial)
                partial.rename(file.path)
    return file.path


def _download(file: HubFile, output: BinaryIO) -> None:
    output.seek(0, os.SEEK_END)
    if output.tell() > file.size:
        output.truncate(0)
    system = _library().HfFileSystem(endpoint=_endpoint(), skip_instance_cache=True)
    with (
        system.open(file.address, "rb", block_size=BLOCK, cache_type="none", size=file.size) as remote,
        DownloadProgress(str(file), file.size, output.tell()) as progress,
    ):
        remote.seek(output.tell())
        while output.tell() < file.size:
            block = remote.read(min(BLOCK, file.size - output.tell()))
            if not block:
                raise DataError("D038", f"{file}: the hub's file ends at byte {output.tell():,}", "run again later")
            output.write(block)
            output.flush()
            progress.advance(len(block))


def _check(file: HubFile, partial: Path) -> None:
    """Raises `DataError` D038, and removes what arrived, if it is not what the hub's list promised."""
    plain = len(file.digest) == 40
    digest = hashlib.sha1(b"blob %d\0" % file.size) if plain else hashlib.sha256()
    with partial.open("rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != file.digest:
        partial.unlink()
        name = "git's sha1" if plain else "sha256"
        what = f"{file}: what arrived has another {name} than the hub says ({digest.hexdigest()})"
        raise DataError("D038", what, "run again: it is fetched anew")


def fetch_tokenizer(name: str) -> Path:
    """The `tokenizer.json` of the model repository `name` on this disk. Raises as `find` does.

    One that was fetched before is good enough where the hub cannot be reached.
    """
    with _translate_errors(name):
        library = _library()
        try:  # asked first, because the download itself would try for half a minute to reach a hub that is not there
            library.HfApi(endpoint=_endpoint()).repo_info(name, timeout=TIMEOUT)
        except Exception as error:
            if getattr(error, "response", None) is not None:
                raise
            known = library.try_to_load_from_cache(name, "tokenizer.json")
            if not isinstance(known, str):
                raise
            return Path(known)
        return Path(library.hf_hub_download(name, "tokenizer.json", endpoint=_endpoint()))


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


def _library() -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise ConfigError("C034", "files of a hub need huggingface_hub", "pip install 'jaxgpt[hub]'") from error


@contextmanager
def _translate_errors(name: str) -> Iterator[None]:
    """Turns the library's errors, several sentences each, into ours."""
    errors = importlib.import_module("huggingface_hub.errors") if _library() else None
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError("S011", f"no room on the disk for {name}", "free some, or set HF_HOME") from error
        raise _hub_error(name, error, errors) from error
    except Exception as error:
        if not type(error).__module__.startswith(LIBRARIES):
            raise
        raise _hub_error(name, error, errors) from error


def _hub_error(name: str, error: Exception, errors: Any) -> Exception:
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    status = getattr(response, "status_code", None)
    token = "HF_TOKEN is set" if os.environ.get("HF_TOKEN") else "HF_TOKEN is not set"
    if isinstance(error, errors.GatedRepoError) or status == 403:
        help = f"accept its terms on its page, and use a token with access ({token})"
        return ConfigError("C035", f"the hub refuses access to {name} ({status})", help)
    if status == 401:
        what = f"the hub knows no {name}, or keeps it private (401)"
        return ConfigError("C035", what, f"check its name, or give a token with access ({token})")
    if status == 404:
        kind = "revision" if isinstance(error, errors.RevisionNotFoundError) else "repository or file"
        return DataError("D023", f"the hub has no such {kind}: {name}", "check its name, and the revision after @")
    if isinstance(error, PermissionError | FileExistsError | NotADirectoryError | IsADirectoryError):
        return error
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    where = _endpoint() or "huggingface.co"
    what = f"cannot fetch {name} from {where}: {f'status {status}' if status else reason}"
    return ConfigError("C036", what, "check the network and HF_ENDPOINT, and run again: it goes on where it stopped")
