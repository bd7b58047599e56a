"""Downloads of models from object stores, web servers and the Hugging Face hub, into a cache.

A model is downloaded into a hidden folder of the cache, which moves to its place when it is whole.
A download that was interrupted is continued. Of several processes, one downloads and the others
wait. The name of a folder in the cache has a hash of the URI and one of the files' versions, so a
folder never changes. When the store is down, the newest folder of the URI is taken.
"""

import contextlib
import errno
import hashlib
import logging
import os
import re
import shutil
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from keras_deepseek.artifacts.bundle import MANIFEST_NAME, Bundle
from keras_deepseek.artifacts.exchange import flush_to_disk
from keras_deepseek.artifacts.manifest import Manifest
from keras_deepseek.errors import (
    BundleError,
    InvalidInputError,
    KerasDeepSeekError,
    MissingExtraError,
    NotSupportedError,
    unknown_name_message,
)

try:
    import fcntl
except ImportError:  # Windows has no such locks.
    fcntl = None  # type: ignore[assignment]

_logger = logging.getLogger(__name__)

_SCHEMES = ("az", "gs", "hf", "http", "https", "s3")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_FILE_SUFFIXES = (".keras", ".onnx")
_NOTES = ".hub"
"""The folder of huggingface_hub in a model that is being downloaded."""

_DOWN = ("GenericError", "ConnectError", "ConnectTimeout", "ReadTimeout")
"""The errors of obstore and of huggingface_hub's HTTP client for a server that does not answer."""

_DOWN_STATUS = range(500, 600)
_LARGEST_MANIFEST = 2**26
_CHUNK_BYTES = 2**20
_CLIENT_OPTIONS = {"timeout": "24h", "read_timeout": "60s"}
_RETRIES = {"max_retries": 5, "retry_timeout": timedelta(minutes=2)}


@dataclass(frozen=True)
class _RemoteFile:
    """A file of a remote model. `version` changes with its content, if the server has one."""

    name: str
    size: int
    version: str = ""


class _Source(ABC):
    """The place of a remote model."""

    @abstractmethod
    def read_manifest(self) -> str | None:
        """Returns the text of `bundle.json`, or `None` if there is none."""

    @abstractmethod
    def list_files(self) -> list[_RemoteFile]:
        """Returns the files of a model that is no bundle."""

    @abstractmethod
    def download(self, file: _RemoteFile, folder: Path) -> Iterator[int]:
        """Downloads a file into a folder, or the rest of it. Yields the bytes that are new."""


def is_uri(model: Any) -> bool:
    """Returns true for a string such as `s3://bucket/model`."""
    return isinstance(model, str) and re.match(r"\w+://", model) is not None


def fetch_model(uri: str, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Downloads a model, unless the cache has it, and returns its path in the cache.

    `ServingEngine` and `keras-deepseek serve` call it for a URI. Call it yourself to choose
    another cache, or to download a model when an image is built.

    Args:
        uri: string. `s3://bucket/path`, `gs://bucket/path`, `az://container/path`,
            `https://host/path`, or `hf://organization/name@revision/path`, whose revision and path
            may be left out. A bundle, a folder with a SavedModel or `model.onnx`, or the URI of a
            `.keras` or an `.onnx` file. Over `https`, where files can't be listed, a folder must be
            a bundle.
        cache_dir: A folder. Defaults to `None`: `keras_deepseek` in the user's cache.

    Returns:
        The `pathlib.Path` of the model.

    Raises:
        InvalidInputError: The URI is wrong, has no model, or can't be reached and the cache has no
            earlier copy.
        BundleError: A file of the bundle is missing or differs from its manifest.
        NotSupportedError: The cache can't be written, or has too little space.
        MissingExtraError: The package for this kind of URI is not installed.

    Example:

    >>> from keras_deepseek.inference import ServingEngine, fetch_model
    >>> path = fetch_model("s3://models/digits/1", cache_dir="models")  # doctest: +SKIP
    >>> engine = ServingEngine(path)  # doctest: +SKIP
    """
    cache = _default_cache() if cache_dir is None else Path(cache_dir)
    fetched: Future[Path] = Future()
    # In another thread, because obstore answers no signal while it waits for a server.
    scheme, sign, location = uri.partition("://")
    uri = scheme + sign + location.rstrip("/")
    work = threading.Thread(target=_fetch, args=(uri, cache, fetched), daemon=True)
    work.start()
    return fetched.result()


def _fetch(uri: str, cache: Path, fetched: "Future[Path]") -> None:
    try:
        fetched.set_result(_find_or_download(uri, cache))
    except BaseException as error:  # noqa: BLE001 - the other thread raises it.
        fetched.set_exception(error)


def _find_or_download(uri: str, cache: Path) -> Path:
    stem = re.sub(r"[^\w.-]", "_", PurePosixPath(uri).name).lstrip(".")
    stem = f"{stem}-{_hash(uri)}"
    try:
        with _errors_of(uri, cache):
            source = _open_source(uri)
            manifest = source.read_manifest()
            files = source.list_files() if manifest is None else _files_of(manifest)
    except _StoreDownError as error:
        copies = sorted(cache.glob(f"{stem}-*"), key=lambda folder: folder.stat().st_mtime)
        if not copies:
            raise
        _logger.warning("The cache's newest copy is served. %s", error)
        return _choose_path(copies[-1])
    for file in files:
        _check_name(uri, file.name)
    folder = cache / f"{stem}-{_hash(repr((manifest, sorted(map(repr, files)))))}"
    with _errors_of(uri, cache):
        _make_folder(cache)
        with _lock(cache / f".{folder.name}.lock"):
            if not _is_whole(folder, manifest):
                _download(uri, source, manifest, files, folder)
    return _choose_path(folder)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _choose_path(folder: Path) -> Path:
    """Returns the file of a folder that is a model of one file, or the folder."""
    files = list(folder.iterdir())
    is_file = len(files) == 1 and files[0].name.endswith(_FILE_SUFFIXES)
    return files[0] if is_file else folder


def _make_folder(cache: Path) -> None:
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NotSupportedError(
            f"The cache {str(cache)!r} can't be made: {error.strerror}. Choose another folder with "
            "--cache-dir."
        ) from error


def _default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "keras_deepseek"


def _open_source(uri: str) -> _Source:
    parts = urlsplit(uri)
    if parts.scheme not in _SCHEMES:
        raise InvalidInputError(unknown_name_message("scheme of a URI", parts.scheme, _SCHEMES))
    if not parts.netloc:
        raise InvalidInputError(f"Received {uri!r}. Expected {parts.scheme}://PLACE/PATH.")
    if parts.query or parts.fragment:
        raise InvalidInputError(f"Received {uri!r}. Expected a URI without ? and #.")
    if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
        raise InvalidInputError(
            f"Received {uri!r}. Use https, since http would let others change the model. Only this "
            "machine itself may be named by http."
        )
    return _Hub(uri) if parts.scheme == "hf" else _ObjectStore(uri)


def _files_of(manifest: str) -> list[_RemoteFile]:
    files = Manifest.from_json(manifest).files
    return [_RemoteFile(name, content["bytes"]) for name, content in files.items()]


def _check_name(uri: str, name: str) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name:
        raise InvalidInputError(f"The model at {uri} has a file named {name!r}, which is refused.")


def _is_whole(folder: Path, manifest: str | None) -> bool:
    """Returns true if the cache has the model. A bundle that was altered there is removed."""
    if not folder.exists():
        return False
    try:
        if manifest is not None:
            Bundle.open(folder)
    except BundleError as error:
        _logger.warning("Downloads the model again. %s", error)
        shutil.rmtree(folder)
        return False
    return True


def _download(
    uri: str, source: _Source, manifest: str | None, files: Sequence[_RemoteFile], folder: Path
) -> None:
    """Downloads what is missing of a model, verifies it, and moves it to its place."""
    partial = folder.with_name(f".{folder.name}.partial")
    partial.mkdir(exist_ok=True)
    total = sum(file.size for file in files)
    present = sum((partial / file.name).stat().st_size for file in files if _has(partial, file))
    free = shutil.disk_usage(partial).free
    if free < total - present:
        raise OSError(errno.ENOSPC, f"{total - present:,} bytes are needed, {free:,} are free")
    _logger.info("Downloads %s: %d files, %s bytes.", uri, len(files), f"{total:,}")
    tenth = 0
    try:
        for file in files:
            (partial / file.name).parent.mkdir(parents=True, exist_ok=True)
            for size in source.download(file, partial):
                present += size
                if total and present * 10 // total > tenth:
                    tenth = present * 10 // total
                    _logger.info("%s: %d %%.", uri, 10 * tenth)
            flush_to_disk(partial / file.name)
    except Exception:
        if not present:
            shutil.rmtree(partial)
        raise
    shutil.rmtree(partial / _NOTES, ignore_errors=True)
    if manifest is not None:
        (partial / MANIFEST_NAME).write_text(manifest, encoding="utf-8")
        try:
            Bundle.open(partial)
        except BundleError:
            shutil.rmtree(partial)
            raise
    partial.rename(folder)
    flush_to_disk(folder.parent)


def _has(folder: Path, file: _RemoteFile) -> bool:
    return (folder / file.name).is_file()


class _ObjectStore(_Source):
    """A bucket or a web server, by obstore. Credentials come from its environment variables."""

    def __init__(self, uri: str) -> None:
        try:
            import obstore
            from obstore import store
        except ImportError as error:
            raise MissingExtraError("obstore", "remote", f"to serve {uri}") from error
        self._uri = uri
        self._obstore = obstore
        self._file = PurePosixPath(uri).name if uri.endswith(_FILE_SUFFIXES) else ""
        # With options of its own, obstore no longer reads this variable.
        is_s3_over_http = os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("true", "1")
        self._store: Any = store.from_url(
            uri.removesuffix(self._file),
            client_options={
                **_CLIENT_OPTIONS,
                "allow_http": uri.startswith("http:")
                or (uri.startswith("s3:") and is_s3_over_http),
            },
            retry_config=_RETRIES,
        )

    def read_manifest(self) -> str | None:
        if self._file:
            return None
        try:
            result = self._obstore.get(self._store, MANIFEST_NAME)
        except FileNotFoundError:
            return None
        if result.meta["size"] > _LARGEST_MANIFEST:
            raise BundleError(f"Its {MANIFEST_NAME} has {result.meta['size']} bytes.")
        return bytes(result.bytes()).decode()

    def list_files(self) -> list[_RemoteFile]:
        if self._file:
            return [_describe(self._obstore.head(self._store, self._file))]
        if self._uri.startswith("http"):
            raise InvalidInputError(
                f"There is no {self._uri}/{MANIFEST_NAME}. Expected the URI of a bundle, or of a "
                "`.keras` or `.onnx` file."
            )
        files = [_describe(meta) for part in self._obstore.list(self._store) for meta in part]
        return _choose_files(self._uri, [file for file in files if not file.name.endswith("/")])

    def download(self, file: _RemoteFile, folder: Path) -> Iterator[int]:
        path = folder / file.name
        with path.open("ab") as stream:
            if stream.tell() > file.size:
                stream.truncate(0)
            if stream.tell() == file.size:
                return
            result = self._open(file, stream)
            if result.meta["size"] != file.size:
                raise BundleError(
                    f"{file.name!r} has {result.meta['size']} bytes where {file.size} were "
                    "expected: it is being written, or was replaced."
                )
            for chunk in result.stream(min_chunk_size=_CHUNK_BYTES):
                yield stream.write(chunk)

    def _open(self, file: _RemoteFile, stream: Any) -> Any:
        """Requests the rest of a file; all of it, if the server can't send a part."""
        if stream.tell():
            with contextlib.suppress(self._obstore.exceptions.NotSupportedError):
                options = {"range": {"offset": stream.tell()}}
                return self._obstore.get(self._store, file.name, options=options)
            stream.truncate(0)
        return self._obstore.get(self._store, file.name)


def _describe(meta: Any) -> _RemoteFile:
    return _RemoteFile(meta["path"], meta["size"], meta["e_tag"] or str(meta["last_modified"]))


def _choose_files(uri: str, files: Sequence[_RemoteFile]) -> list[_RemoteFile]:
    """Returns the files of the one model that a folder has."""
    names = {file.name for file in files}
    if names & {"saved_model.pb", "saved_model.pbtxt"}:
        return list(files)
    onnx = [file for file in files if file.name.startswith("model.onnx")]
    keras = [file for file in files if "/" not in file.name and file.name.endswith(".keras")]
    if "model.onnx" in names:
        return onnx
    if len(keras) == 1:
        return keras
    listing = ", ".join(sorted(names)[:5]) or "nothing"
    raise InvalidInputError(
        f"No model at {uri}. Expected a bundle, a SavedModel, model.onnx or one `.keras` file; "
        f"found {listing}."
    )


class _Hub(_Source):
    """A repository on the Hugging Face hub, by huggingface_hub, at one commit."""

    def __init__(self, uri: str) -> None:
        match = re.fullmatch(r"hf://([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.+))?", uri)
        if match is None:
            raise InvalidInputError(
                f"Received {uri!r}. Expected hf://organization/name@revision, with or without the "
                "revision, and a path in the repository behind it."
            )
        try:
            import huggingface_hub
        except ImportError as error:
            raise MissingExtraError("huggingface_hub", "hub", f"to serve {uri}") from error
        self._uri = uri
        self._hub = huggingface_hub
        self._repository = match[1]
        info = huggingface_hub.HfApi().model_info(match[1], revision=match[2], files_metadata=True)
        self._commit = info.sha
        self._sizes = {file.rfilename: file.size or 0 for file in info.siblings}
        path = match[3] or ""
        is_file = path.endswith(_FILE_SUFFIXES)
        self._file = PurePosixPath(path).name if is_file else ""
        self._folder = path.removesuffix(self._file).strip("/")

    def read_manifest(self) -> str | None:
        name = self._full_name(MANIFEST_NAME)
        if self._file or name not in self._sizes:
            return None
        with tempfile.TemporaryDirectory() as folder:
            return Path(self._fetch(name, folder)).read_text(encoding="utf-8")

    def list_files(self) -> list[_RemoteFile]:
        start = self._full_name("")
        files = [
            _RemoteFile(name.removeprefix(start), size, self._commit)
            for name, size in self._sizes.items()
            if name.startswith(start)
        ]
        if self._file:
            return [file for file in files if file.name == self._file] or _choose_files(
                self._uri, []
            )
        return _choose_files(self._uri, files)

    def download(self, file: _RemoteFile, folder: Path) -> Iterator[int]:
        if _has(folder, file):
            return
        Path(self._fetch(self._full_name(file.name), folder / _NOTES)).replace(folder / file.name)
        yield file.size

    def _fetch(self, name: str, folder: str | Path) -> str:
        """Downloads a file into a folder, where huggingface_hub also keeps its notes."""
        path: str = self._hub.hf_hub_download(
            self._repository, name, revision=self._commit, local_dir=folder
        )
        return path

    def _full_name(self, name: str) -> str:
        return f"{self._folder}/{name}" if self._folder else name


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Context manager that holds a lock file, and waits for the process that has it."""
    with path.open("w") as stream:
        if fcntl is not None:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                _logger.info("Waits for another process that downloads the same model.")
                fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _errors_of(uri: str, cache: Path) -> Iterator[None]:
    """Context manager that raises the errors of downloads as errors that users can correct."""
    try:
        yield
    except BundleError as error:
        raise BundleError(f"The model at {uri} is refused. {error}") from error
    except KerasDeepSeekError:
        raise
    except FileNotFoundError as error:
        raise BundleError(f"The model at {uri} is incomplete: {_first_line(error)}") from error
    except OSError as error:
        if error.errno is None:  # Errors of the hub have no number.
            raise _unreachable(uri, error) from error
        is_full = error.errno == errno.ENOSPC
        raise NotSupportedError(
            f"The cache {str(cache)!r} {'is full' if is_full else 'cannot be written'}: "
            f"{error.strerror}. {'Free some space, or choose' if is_full else 'Choose'} another "
            "folder with --cache-dir."
        ) from error
    except Exception as error:
        # Those of obstore, of huggingface_hub, and of the HTTP client that it has.
        if type(error).__module__ != "builtins" or isinstance(error, ValueError):
            raise _unreachable(uri, error) from error
        raise


class _StoreDownError(InvalidInputError):
    """Raised when a store does not answer, or answers that it failed."""


def _unreachable(uri: str, error: Exception) -> InvalidInputError:
    kind, line = type(error).__name__, _first_line(error)
    hint = ""
    if uri.startswith("s3:") and "builder error" in line:
        hint = " For a store without TLS, set AWS_ALLOW_HTTP=true."
    status = getattr(getattr(error, "response", None), "status_code", 0)
    is_down = kind in _DOWN or isinstance(error, ConnectionError) or status in _DOWN_STATUS
    raised = _StoreDownError if is_down else InvalidInputError
    return raised(f"{uri} can't be read: {kind}: {line}{hint}")


def _first_line(error: Exception) -> str:
    line = str(error).strip().partition("\n")[0].partition("<?xml")[0]
    return line.rstrip(".: ") + "."
