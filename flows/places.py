"""Whether the places and machines that settings name are there, before anything is started or written."""

import os
import re
import socket
from enum import Enum
from pathlib import Path
from tempfile import TemporaryFile
from urllib.parse import urlsplit

from upath import UPath

from trackstar.storage.errors import InputError
from trackstar.storage.layout import location

SERVER_TIMEOUT_S = 3
SCHEDULER = re.compile(r"(?:(?:tcp|tls|ws|wss|ucx)://)?[^\s:/]+:\d{1,5}")
WHERE_EXPECTED = "expected local, processes, or a Dask scheduler's address such as tcp://HOST:8786"
DEVICE = re.compile(r"auto|cpu|(?:cuda|mps|xpu|hpu|npu|mtia)(?::\d{1,3})?")


class Place(Enum):
    """What a path of the settings has to be."""

    DIRECTORY = "an existing directory"
    FILE = "an existing file"
    NEW = "a directory that is there or can be made"


def require_place(url: str, place: Place, *, name: str) -> None:
    """Raise InputError unless there is, or can be, at ``url`` what the setting of this name asks for."""
    path = location(url)
    if not is_local(path):
        require_store(path)
        return
    if place is Place.NEW:
        _require_room(path, name)
    elif not path.exists():
        raise InputError(f"{name} is {url}, which does not exist; give {place.value}")
    elif place is Place.FILE and path.is_dir():
        raise InputError(f"{name} is {url}, which is a directory; give a file")
    elif place is Place.DIRECTORY and not path.is_dir():
        raise InputError(f"{name} is {url}, which is a file; give a directory")


def _require_room(path: UPath, name: str) -> None:
    nearest = path
    while not (nearest.exists() or nearest.is_symlink()):
        nearest = nearest.parent
    if not nearest.is_dir():
        what = "a file" if nearest.is_file() else "no directory"
        raise InputError(f"{name} is {path}, and {nearest} is {what}; give a directory")
    if not os.access(str(nearest), os.W_OK | os.X_OK):
        raise InputError(f"{name} is {path}, and {nearest} may not be written to; give a directory of your own")


def is_local(path: UPath) -> bool:
    return path.protocol in ("", "file", "local")


def require_store(path: UPath) -> None:
    """Raise InputError where the package or the credentials for an object store are lacking."""
    try:
        file_system = type(path.fs)  # imports what the scheme needs
    except (ImportError, ValueError) as error:
        cure = "pip install 'trackstar[s3]'" if path.protocol in ("s3", "s3a") else "install it"
        raise InputError(f"{path} needs a package that is not there ({error}); {cure}") from error
    if file_system.__name__ == "S3FileSystem" and not path.fs.anon:
        from botocore.session import get_session

        if get_session().get_credentials() is None:
            raise InputError(f"{path} needs AWS credentials and there are none; set AWS_PROFILE, or AWS_ACCESS_KEY_ID")


def require_where(where: str, *, name: str) -> None:
    """Raise InputError unless Dask can run on ``where``, and a scheduler listens where one is named."""
    if where in ("local", "processes"):
        return
    if not SCHEDULER.fullmatch(where):
        raise InputError(f"{name} is {where!r}, {WHERE_EXPECTED}")
    host, _, port = where.rpartition("//")[2].rpartition(":")
    if not _listens(host, int(port)):
        raise InputError(f"{name} is {where}, where no Dask scheduler answers; start one, or give local or processes")


def require_device(device: str, *, name: str) -> None:
    """Raise InputError for a device that this machine does not have."""
    if not DEVICE.fullmatch(device):
        raise InputError(f"{name} is {device!r}, expected auto, cpu, cuda, cuda:1, mps or the like")
    if device in ("auto", "cpu"):
        return
    if device.startswith("cuda") and not any(map(os.path.exists, ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg"))):
        raise InputError(f"{name} is {device}, and this machine has no such device; give cpu, or auto")
    import torch

    kind, _, number = device.partition(":")
    backend = getattr(torch, kind, None)
    if backend is None or not backend.is_available():
        raise InputError(f"{name} is {device}, and this machine has no such device; give cpu, or auto")
    if number and int(number) >= backend.device_count():
        raise InputError(f"{name} is {device}, and this machine has {backend.device_count()} of them, counted from 0")


def require_prefect() -> None:
    """Raise InputError where Prefect is told of a server that does not answer, or of a home it cannot write to."""
    url = os.environ.get("PREFECT_API_URL", "")
    if url:
        require_server(url)
    home = Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()
    try:
        home.mkdir(parents=True, exist_ok=True)  # as Prefect is about to do
        with TemporaryFile(dir=home):
            pass
    except OSError as error:
        problem = error.strerror or error
        raise InputError(f"Prefect cannot write to its home {home} ({problem}); set PREFECT_HOME to another") from error


def require_server(url: str) -> None:
    """Raise InputError unless something answers at the address of a Prefect server."""
    parts = urlsplit(url)
    port = _port(url) or (443 if parts.scheme == "https" else 80)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"PREFECT_API_URL is {url!r}, expected an address such as http://127.0.0.1:4200/api")
    if not _listens(parts.hostname, port):
        raise InputError(
            f"PREFECT_API_URL is {url}, where no Prefect server answers; start it with `prefect server start`, or "
            "unset PREFECT_API_URL to run without one"
        )


def is_answering(url: str) -> bool:
    """Whether something answers at the address of a Prefect server."""
    try:
        require_server(url)
    except InputError:
        return False
    return True


def _port(url: str) -> int | None:
    try:
        return urlsplit(url).port
    except ValueError as error:
        raise InputError(f"PREFECT_API_URL is {url!r}, whose port is no number; correct or unset it") from error


def _listens(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host.strip("[]"), port), timeout=SERVER_TIMEOUT_S):
            return True
    except (OSError, OverflowError, UnicodeError):
        return False
