"""Downloads of models from object stores, web servers and the Hugging Face hub, into a cache.

obstore reads stores and web servers, huggingface_hub reads the hub. A model is downloaded into a
hidden folder of the cache, which moves to its final path when it is whole. The name of a folder in
the cache has a hash of the URI and one of the files' versions, so a folder never changes.
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
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from keras_deepseek.artifacts.bundle import MANIFEST_NAME, Bundle, Manifest
from keras_deepseek.artifacts.staging_folder import flush_to_disk
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
_PRESET_SUFFIXES = (".jinja", ".json", ".safetensors", ".weights.h5")
"""The files of a preset: its config, its weights, its tokenizer and its chat template. The last
suffix is that of KerasHub's weights."""

_PRESET_FOLDER = "assets/tokenizer/"
"""The folder in which KerasHub keeps a tokenizer's vocabulary."""

_DOWN = ("GenericError", "ConnectError", "ConnectTimeout", "ReadTimeout")
"""The errors of obstore and of huggingface_hub's HTTP client for a server that does not answer."""

_DOWN_STATUS = range(500, 600)
_CHUNK_BYTES = 2**20
_CLIENT_OPTIONS = {"timeout": "24h", "read_timeout": "60s"}
_RETRIES = {"max_retries": 5, "retry_timeout": timedelta(minutes=2)}


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
            may be left out. A bundle, a folder with a SavedModel or `model.onnx`, the preset of a
            language model, or the URI of a `.keras` or an `.onnx` file. Over `https`, where files
            can't be listed, a folder must be a bundle.
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
    cache_home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    cache = Path(cache_home, "keras_deepseek") if cache_dir is None else Path(cache_dir)
    scheme, sign, location = uri.partition("://")
    fetched: Future[Path] = Future()
    arguments = (scheme + sign + location.rstrip("/"), cache, fetched)
    # In another thread, because obstore answers no signal while it waits for a server.
    threading.Thread(target=_fetch, args=arguments, daemon=True).start()
    return fetched.result()


def _fetch(uri: str, cache: Path, fetched: "Future[Path]") -> None:
    try:
        fetched.set_result(_find_or_download(uri, cache))
    except BaseException as error:  # noqa: BLE001 - the other thread raises it.
        fetched.set_exception(error)


@dataclass(frozen=True)
class _RemoteModel:
    """The files of a model by name, with their sizes in bytes and their versions, if known."""

    source: "_Store | _Hub"
    files: Mapping[str, tuple[int, str]]
    manifest: str | None


def _find_or_download(uri: str, cache: Path) -> Path:
    """Returns the model's path in the cache: its newest copy there, if its store is down."""
    stem = re.sub(r"[^\w.-]", "_", PurePosixPath(uri).name).lstrip(".")
    stem = f"{stem}-{_hash(uri)}"
    try:
        with _errors_of(uri, cache):
            model = _find(uri)
    except _StoreDownError as error:
        copies = sorted(cache.glob(f"{stem}-*"), key=lambda folder: folder.stat().st_mtime)
        if not copies:
            raise
        _logger.warning("The cache's newest copy is served. %s", error)
        return _choose_path(copies[-1])
    folder = cache / f"{stem}-{_hash(model.manifest or repr(sorted(model.files.items())))}"
    with _errors_of(uri, cache):
        cache.mkdir(parents=True, exist_ok=True)
        with _lock(cache / f".{folder.name}.lock"):
            if not _is_whole(folder, model.manifest):
                _download(uri, model, folder)
    return _choose_path(folder)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _choose_path(folder: Path) -> Path:
    files = list(folder.iterdir())
    return files[0] if len(files) == 1 and _file_name(files[0].name) else folder


def _is_whole(folder: Path, manifest: str | None) -> bool:
    """Returns true if the cache has the model. A bundle that was altered there is removed."""
    try:
        if manifest is not None and folder.exists():
            Bundle.open(folder)
    except BundleError as error:
        _logger.warning("Downloads the model again. %s", error)
        shutil.rmtree(folder)
    return folder.exists()


def _find(uri: str) -> _RemoteModel:
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
    source = _Hub(uri) if parts.scheme == "hf" else _Store(uri)
    manifest = None if source.file else _read_manifest(source)
    if manifest is None:
        files = _choose_files(uri, source.list_files())
    else:
        contents = Manifest.from_json(manifest).files
        files = {name: (content["bytes"], "") for name, content in contents.items()}
    for name in files:
        if "\\" in name or name.startswith("/") or ".." in name.split("/"):
            raise InvalidInputError(f"The model at {uri} has a file named {name!r}: refused.")
    return _RemoteModel(source, files, manifest)


def _read_manifest(source: "_Store | _Hub") -> str | None:
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(FileNotFoundError):
        path = Path(folder, MANIFEST_NAME)
        sum(source.download(MANIFEST_NAME, path))
        return path.read_text(encoding="utf-8")
    return None


def _choose_files(uri: str, listing: dict[str, tuple[int, str]]) -> dict[str, tuple[int, str]]:
    """Returns the files of the one model that has no manifest."""
    keras = [name for name in listing if "/" not in name and name.endswith(".keras")]
    if _file_name(uri) in listing:
        names = [_file_name(uri)]
    elif listing.keys() & {"saved_model.pb", "saved_model.pbtxt"}:
        names = list(listing)
    elif "model.onnx" in listing:
        names = [name for name in listing if name.startswith("model.onnx")]
    elif len(keras) == 1:
        names = keras
    elif "config.json" in listing:
        names = [name for name in listing if _is_of_preset(name)]
    else:
        raise InvalidInputError(
            f"No model at {uri}. Expected a bundle, a SavedModel, model.onnx, one `.keras` file, "
            "or the preset of a language model, with a config.json; found "
            f"{', '.join(sorted(listing)[:5]) or 'nothing'}."
        )
    return {name: listing[name] for name in names}


def _is_of_preset(name: str) -> bool:
    is_at_top = "/" not in name and name.endswith(_PRESET_SUFFIXES)
    return is_at_top or name.startswith(_PRESET_FOLDER)


def _file_name(path: str) -> str:
    """Returns the name of the model file that a path ends with; `""` for a folder."""
    return PurePosixPath(path).name if path.endswith(_FILE_SUFFIXES) else ""


def _download(uri: str, model: _RemoteModel, folder: Path) -> None:
    """Downloads the missing files of a model, verifies it, and moves it to its path."""
    partial = folder.with_name(f".{folder.name}.partial")
    partial.mkdir(exist_ok=True)
    sizes = {name: size for name, (size, _) in model.files.items()}
    missing = [name for name in sizes if not (partial / name).is_file()]
    total = sum(sizes.values())
    present = total - sum(sizes[name] for name in missing)
    free = shutil.disk_usage(partial).free
    if free < total - present:
        raise OSError(errno.ENOSPC, f"{total - present:,} bytes are needed, {free:,} are free")
    _logger.info("Downloads %s: %d files, %s bytes.", uri, len(sizes), f"{total:,}")
    tenth = 0
    try:
        for name in missing:
            for size in _download_file(model.source, name, sizes[name], partial):
                present += size
                if total and present * 10 // total > tenth:
                    tenth = present * 10 // total
                    _logger.info("%s: %d %%.", uri, 10 * tenth)
        if model.manifest is not None:
            (partial / MANIFEST_NAME).write_text(model.manifest, encoding="utf-8")
            Bundle.open(partial)
    except BundleError:
        shutil.rmtree(partial)
        raise
    partial.rename(folder)
    flush_to_disk(folder.parent)


def _download_file(
    source: "_Store | _Hub", name: str, expected: int, folder: Path
) -> Iterator[int]:
    """Downloads a file, and moves it to its name when it is whole. Yields numbers of bytes."""
    parts = folder / ".part"
    try:
        parts.mkdir(exist_ok=True)
        yield from source.download(name, parts / "file")
        size = (parts / "file").stat().st_size
        if size != expected:
            raise BundleError(
                f"{name!r} has {size} bytes where {expected} were expected: it is being written, "
                "or was replaced."
            )
        flush_to_disk(parts / "file")
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (parts / "file").replace(folder / name)
    finally:
        shutil.rmtree(parts)


class _Store:
    """A bucket or a web server, by obstore. Credentials come from its environment variables."""

    def __init__(self, uri: str) -> None:
        try:
            import obstore
            from obstore import store
        except ImportError as error:
            raise MissingExtraError("obstore", "remote", f"to serve {uri}") from error
        self.file = _file_name(uri)
        self._uri = uri
        self._obstore = obstore
        # With options of its own, obstore no longer reads this variable.
        is_s3_over_http = os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("true", "1")
        is_http = uri.startswith("http:") or (uri.startswith("s3:") and is_s3_over_http)
        self._store: Any = store.from_url(
            uri.removesuffix(self.file),
            client_options={**_CLIENT_OPTIONS, "allow_http": is_http},
            retry_config=_RETRIES,
        )

    def list_files(self) -> dict[str, tuple[int, str]]:
        if self.file:
            metas = [self._obstore.head(self._store, self.file)]
        elif self._uri.startswith("http"):
            raise InvalidInputError(
                f"There is no {self._uri}/{MANIFEST_NAME}. Expected the URI of a bundle, or of a "
                "`.keras` or `.onnx` file."
            )
        else:
            metas = [meta for part in self._obstore.list(self._store) for meta in part]
        return {
            meta["path"]: (meta["size"], meta["e_tag"] or str(meta["last_modified"]))
            for meta in metas
            if not meta["path"].endswith("/")
        }

    def download(self, name: str, path: Path) -> Iterator[int]:
        result = self._obstore.get(self._store, name)
        with path.open("wb") as stream:
            for chunk in result.stream(min_chunk_size=_CHUNK_BYTES):
                yield stream.write(chunk)


class _Hub:
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
        self._hub = huggingface_hub
        self._repository, revision, path = match[1], match[2], match[3] or ""
        self.file = _file_name(path)
        self._folder = f"{path.removesuffix(self.file)}/".lstrip("/").replace("//", "/")
        info = huggingface_hub.HfApi().model_info(
            self._repository, revision=revision, files_metadata=True
        )
        self._commit = info.sha
        self._sizes = {file.rfilename: file.size or 0 for file in info.siblings}

    def list_files(self) -> dict[str, tuple[int, str]]:
        return {
            name.removeprefix(self._folder): (size, self._commit)
            for name, size in self._sizes.items()
            if name.startswith(self._folder + self.file)
        }

    def download(self, name: str, path: Path) -> Iterator[int]:
        if self._folder + name not in self._sizes:
            raise FileNotFoundError(self._folder + name)
        file = self._hub.hf_hub_download(
            self._repository, self._folder + name, revision=self._commit, local_dir=path.parent
        )
        Path(file).replace(path)
        yield path.stat().st_size


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
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
