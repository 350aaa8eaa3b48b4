"""Files of a Hugging Face hub, `hf://datasets/OWNER/NAME/path`: listed first, downloaded when they are needed.

`huggingface_hub` (the extra `hub`) talks to the hub and reads HF_TOKEN and HF_ENDPOINT. Its own downloads keep nothing
of an interrupted transfer, and files can have gigabytes. So this module downloads in blocks, into that library's assets
cache, and resumes an interrupted download at the last block. A complete file is compared with the hub's hash.
"""

import errno
import hashlib
import importlib
import os
import re
import urllib.parse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from jaxgpt.errors import ConfigError, DataError, JaxgptError, StorageError
from jaxgpt.utils.lock import lock_file
from jaxgpt.utils.progress import DownloadProgress

PREFIX = "hf://"
NAME_FORMAT = "hf://datasets/OWNER/NAME[@REVISION]/PATH*.parquet"
NAME = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+)(?:@(refs/(?:convert|pr)/[^/]+|[^/]+))?/(.+)")
REPOSITORY = re.compile(r"(?!\.)[\w.-]+/[\w.-]+(?<!\.json)")
BLOCK_BYTES = 16_000_000  # per request
TIMEOUT = 30.0  # seconds until a silent hub counts as unreachable
NETWORK_LIBRARIES = ("huggingface_hub", "httpx", "httpcore", "requests", "urllib3")
WILDCARD = re.compile(r"[*?]")


@dataclass(frozen=True)
class HubFile:
    """A file in one commit of a dataset repository. `digest` is its sha256, or git's sha1 for a small file."""

    repository: str
    commit: str
    name: str  # its path in the repository
    size: int
    digest: str
    path: Path  # on this disk, once it is downloaded

    @property
    def address(self) -> str:
        return f"datasets/{self.repository}@{self.commit}/{self.name}"

    def __str__(self) -> str:
        return f"{PREFIX}datasets/{self.repository}/{self.name}"


def find_files(name: str) -> list[HubFile]:
    """Lists the files that match `name`, in order. `*` and `?` do not match a slash, `**` matches folders.

    Raises `ConfigError` C034 without the library, C035 if the hub refuses access, C036 if it cannot be reached,
    `DataError` D023 if there is no such repository, revision or file.
    """
    match = NAME.fullmatch(name)
    if not match:
        raise DataError("D023", f"source {name!r} does not name files of a dataset on the hub", NAME_FORMAT)
    repository, pattern = match[1], match[3]
    revision = urllib.parse.unquote(match[2] or "main")
    with _translate_errors(name):
        api = library().HfApi(endpoint=_endpoint())
        commit = api.repo_info(repository, repo_type="dataset", revision=revision, timeout=TIMEOUT).sha
        folder = str(PurePosixPath(*_fixed_folders(pattern)))
        options = {"repo_type": "dataset", "revision": commit, "recursive": True}
        tree = list(api.list_repo_tree(repository, None if folder == "." else folder, **options))
    entries = [entry for entry in tree if hasattr(entry, "size")]
    glob = _compile_glob(pattern)
    files = [_file(repository, commit, entry) for entry in entries if glob.fullmatch(entry.path)]
    if not files:
        raise DataError("D023", f"no file of {repository} on the hub matches {pattern!r}", _list_names(entries))
    return sorted(files, key=lambda file: file.name)


def _fixed_folders(pattern: str) -> list[str]:
    """The leading folders without wildcards: only what is inside them has to be listed."""
    folders = pattern.split("/")[:-1]
    first_wildcard = next((index for index, part in enumerate(folders) if WILDCARD.search(part)), len(folders))
    return folders[:first_wildcard]


def _compile_glob(pattern: str) -> "re.Pattern[str]":
    wildcards = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    return re.compile("".join(wildcards.get(part) or re.escape(part) for part in parts))


def _file(repository: str, commit: str, entry: Any) -> HubFile:
    folder = library().cached_assets_path("jaxgpt", namespace=f"datasets/{repository}", subfolder=commit)
    digest = entry.lfs.sha256 if entry.lfs else entry.blob_id
    parts = [part for part in PurePosixPath(entry.path).parts if part not in ("/", "..")]
    return HubFile(repository, commit, entry.path, entry.size, digest, folder.joinpath(*parts))


def _list_names(entries: list[Any]) -> str:
    names = [entry.path for entry in entries]
    return f"its files: {', '.join(names[:5])}{' …' if len(names) > 5 else ''}" if names else NAME_FORMAT


def is_downloaded(file: HubFile) -> bool:
    return file.path.is_file() and file.path.stat().st_size == file.size


def open_remote(file: HubFile) -> IO[bytes]:
    """Opens the file on the hub, to read parts of it. Raises what `find_files` raises."""
    with _translate_errors(str(file)):
        remote: IO[bytes] = _file_system().open(file.address, "rb", block_size=1 << 20, size=file.size)
        return remote


def fetch(file: HubFile) -> Path:
    """Returns the file on this disk; downloads what is missing of it, with a bar on a terminal.

    Raises what `find_files` raises; `StorageError` S011 if the disk is full, `DataError` D038 if the content differs.
    """
    if is_downloaded(file):
        return file.path
    partial = file.path.with_name(f".{file.path.name}.partial")
    lock = file.path.with_name(f".{file.path.name}.lock")
    with _translate_errors(str(file)):
        file.path.parent.mkdir(parents=True, exist_ok=True)
        with lock_file(lock, wait=True):  # another process may be downloading it
            try:
                if not is_downloaded(file):
                    _download(file, partial)
                    _check(file, partial)
                    partial.rename(file.path)
            finally:
                lock.unlink(missing_ok=True)  # a waiting process then creates a new one
    return file.path


def _download(file: HubFile, partial: Path) -> None:
    """Appends to `partial` what is missing of the file."""
    with partial.open("ab") as output:
        if output.tell() > file.size:
            output.truncate(0)
            output.seek(0)
        done = output.tell()
        with (
            _file_system().open(
                file.address, "rb", block_size=BLOCK_BYTES, cache_type="none", size=file.size
            ) as remote,
            DownloadProgress(str(file), file.size, done) as progress,
        ):
            remote.seek(done)
            while done < file.size:
                block = remote.read(min(BLOCK_BYTES, file.size - done))
                if not block:
                    raise DataError("D038", f"{file}: the hub's file ends at byte {done:,}", "run again later")
                output.write(block)
                output.flush()
                done += len(block)
                progress.advance(len(block))


def _check(file: HubFile, partial: Path) -> None:
    """Raises `DataError` D038, and removes what was downloaded, if its hash is not the one that the hub lists."""
    is_sha1 = len(file.digest) == 40
    digest = hashlib.sha1(b"blob %d\0" % file.size) if is_sha1 else hashlib.sha256()
    with partial.open("rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != file.digest:
        partial.unlink()
        name = "git's sha1" if is_sha1 else "sha256"
        message = f"{file}: what arrived has another {name} than the hub says ({digest.hexdigest()})"
        raise DataError("D038", message, "run again to fetch it from the beginning")


def fetch_tokenizer(name: str) -> Path:
    """Returns the `tokenizer.json` of the model repository `name` on this disk. Raises what `find_files` raises.

    If the hub cannot be reached, uses one that was downloaded before.
    """
    with _translate_errors(name):
        module = library()
        try:  # fails fast, where the download itself would retry for half a minute
            module.HfApi(endpoint=_endpoint()).repo_info(name, timeout=TIMEOUT)
        except Exception as error:
            if getattr(error, "response", None) is not None:
                raise
            cached = module.try_to_load_from_cache(name, "tokenizer.json")
            if not isinstance(cached, str):
                raise
            return Path(cached)
        return Path(module.hf_hub_download(name, "tokenizer.json", endpoint=_endpoint()))


def fetch_model(name: str, patterns: Sequence[str]) -> Path:
    """Returns a folder with the files of the model repository `name` that match `patterns`; downloads what is missing.

    Raises what `find_files` raises.
    """
    with _translate_errors(name):
        options = {"allow_patterns": list(patterns), "endpoint": _endpoint(), "etag_timeout": TIMEOUT}
        return Path(library().snapshot_download(name, **options))


def push_model(folder: Path, name: str) -> str:
    """Uploads `folder` as the model repository `name`, which is made, private, if it does not exist; its address.

    Raises what `find_files` raises, with a help that says how to upload the folder later.
    """
    try:
        with _translate_errors(name):
            api = library().HfApi(endpoint=_endpoint())
            api.create_repo(name, private=True, exist_ok=True)
            return str(api.upload_folder(repo_id=name, folder_path=folder, commit_message="Exported by jaxgpt"))
    except JaxgptError as error:
        help = f"'{folder}' is complete; upload it later: hf upload {name} {folder}"
        raise error.replace(help=help) from error


def _file_system() -> Any:
    return library().HfFileSystem(endpoint=_endpoint(), skip_instance_cache=True)


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


def library() -> Any:
    """The module `huggingface_hub`. Raises `ConfigError` C034 if it is not installed."""
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise ConfigError("C034", "files of a hub need huggingface_hub", "pip install 'jaxgpt[hub]'") from error


@contextmanager
def _translate_errors(name: str) -> Iterator[None]:
    """Turns the library's errors, which have several sentences, into `JaxgptError`s with one."""
    errors = importlib.import_module("huggingface_hub.errors") if library() else None
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(
                "S011", f"the disk is full: {name} does not fit", "free some space, or set HF_HOME"
            ) from error
        raise _hub_error(name, error, errors) from error
    except Exception as error:
        if not type(error).__module__.startswith(NETWORK_LIBRARIES):
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
        message = f"{name} does not exist on the hub, or is private (401)"
        return ConfigError("C035", message, f"check its name, or use a token with access ({token})")
    if status == 404:
        kind = "revision" if isinstance(error, errors.RevisionNotFoundError) else "repository or file"
        return DataError("D023", f"the hub has no such {kind}: {name}", "check its name, and the revision after @")
    if isinstance(error, PermissionError | FileExistsError | NotADirectoryError | IsADirectoryError):
        return error
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    reason = f"status {status}" if status else reason
    message = f"cannot fetch {name} from {_endpoint() or 'huggingface.co'}: {reason}"
    return ConfigError("C036", message, "check the network and HF_ENDPOINT, and run again to resume")
