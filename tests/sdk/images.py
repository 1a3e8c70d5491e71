"""Local images under the names that the documents use.

A docker archive is put together from packages of the host's distribution: busybox, and Python for the image that needs
one. They are images by name only, and hold what the documents' commands call. Not here: importing them.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

PASSWD = """\
root:x:0:0:root:/root:/bin/sh
app:x:1000:1000:app:/home/app:/bin/sh
"""

GROUP = """\
root:x:0:
app:x:1000:
readers:x:2000:app
"""

# Old names of directories that later became links into /usr.
MERGED = ("bin", "sbin", "lib", "lib64")


class Unavailable(Exception):
    """This host cannot make the image, and why."""


def archive(name: str, cache: Path) -> Path:
    """The docker archive of an image; made once."""
    make = {"alpine:latest": alpine, "python:3.12-alpine": python, "distroless:latest": distroless}[name]
    path = cache / f"{name.replace(':', '_')}.tar"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as directory:
            staged = Path(directory) / "image.tar"
            make(name, staged)
            staged.rename(path)
    return path


def alpine(name: str, path: Path) -> None:
    """A shell and the usual commands."""
    with tempfile.TemporaryDirectory() as directory:
        layer = Layer(Path(directory) / "layer.tar")
        busybox(layer)
        layer.save(path, name, {"Cmd": ["/bin/sh"], "Env": [f"PATH={PATH}"]})


def python(name: str, path: Path) -> None:
    """The same, and `python3`."""
    version = python_package()
    with tempfile.TemporaryDirectory() as directory:
        layer = Layer(Path(directory) / "layer.tar")
        packages = [version, f"lib{version}", "libc6", "libexpat1", "zlib1g"]
        with debs(packages) as files:
            for deb in files:
                layer.deb(deb)
        layer.link("usr/bin/python3", version.removesuffix("-minimal"))
        busybox(layer)
        layer.save(path, name, {"Cmd": ["python3"], "Env": [f"PATH={PATH}"]})


def distroless(name: str, path: Path) -> None:
    """One program and no shell."""
    with tempfile.TemporaryDirectory() as directory:
        layer = Layer(Path(directory) / "layer.tar")
        with debs(["busybox-static"]) as files:
            layer.file("hello/echo", binary(files[0]), 0o755)
        layer.save(path, name, {"Entrypoint": ["/hello/echo", "launched"], "Env": ["PATH=/hello"]})


def python_package() -> str:
    """The package of the distribution's Python, such as `python3.11-minimal`."""
    shown = run(["apt-cache", "show", "--no-all-versions", "python3-minimal"])
    found = re.search(r"python3\.\d+-minimal", shown)
    if found is None:
        raise Unavailable("the distribution has no python3-minimal")
    return found[0]


def busybox(layer: Layer) -> None:
    """busybox under all its names, and the files that name users."""
    with debs(["busybox-static"]) as files:
        program = binary(files[0])
    layer.file("usr/bin/busybox", program, 0o755)
    with tempfile.TemporaryDirectory() as directory:
        # It goes by the name it is called by.
        here = Path(directory) / "busybox"
        here.write_bytes(program)
        here.chmod(0o755)
        names = run([str(here), "--list"]).split()
    for name in names:
        if name != "busybox":
            layer.link(f"usr/bin/{name}", "busybox")
    layer.file("etc/passwd", PASSWD.encode(), 0o644)
    layer.file("etc/group", GROUP.encode(), 0o644)


def binary(deb: Path) -> bytes:
    """The busybox of its package."""
    with tarfile.open(fileobj=io.BytesIO(data(deb))) as tar:
        for member in tar:
            if member.isfile() and member.name.endswith("bin/busybox"):
                file = tar.extractfile(member)
                assert file is not None
                return file.read()
    raise Unavailable(f"{deb.name} holds no busybox")


class debs:
    """Packages of the distribution, fetched into a directory that goes with the context."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = list(names)
        if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
            raise Unavailable("this host has no apt-get to fetch packages with")

    def __enter__(self) -> list[Path]:
        self.directory = tempfile.TemporaryDirectory()
        try:
            where = self.directory.name
            command = ["apt-get", "download", "-q=2", "-o", "APT::Sandbox::User=root", *self.names]
            done = subprocess.run(command, cwd=where, capture_output=True, text=True)
            if done.returncode != 0:
                raise Unavailable(f"apt-get download: {done.stderr.strip()}")
            return [next(Path(where).glob(f"{name}_*.deb")) for name in self.names]
        except BaseException:
            self.directory.cleanup()
            raise

    def __exit__(self, *_: object) -> None:
        self.directory.cleanup()


def data(deb: Path) -> bytes:
    """A package's files, as a tar."""
    return subprocess.run(["dpkg-deb", "--fsys-tarfile", str(deb)], capture_output=True, check=True).stdout


def run(command: list[str]) -> str:
    """The output of a command."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


class Layer:
    """The one layer of an image."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tar = tarfile.open(path, "w", format=tarfile.PAX_FORMAT)
        self.seen: set[str] = set()
        for name in ("usr", "usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "etc", "root", "home", "proc", "sys", "dev"):
            self.directory(name)
        self.directory("tmp", 0o1777)
        self.directory("home/app")
        for name in MERGED:
            self.link(name, f"usr/{name}")

    def add(self, info: tarfile.TarInfo, content: bytes | None = None) -> None:
        """A member, unless there is one of that name."""
        if info.name not in self.seen:
            self.seen.add(info.name)
            self.tar.addfile(info, None if content is None else io.BytesIO(content))

    def directory(self, name: str, mode: int = 0o755) -> None:
        """An empty directory."""
        info = tarfile.TarInfo(name)
        info.type, info.mode = tarfile.DIRTYPE, mode
        self.add(info)

    def file(self, name: str, content: bytes, mode: int) -> None:
        """A file."""
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(content), mode
        self.directory(str(Path(name).parent))
        self.add(info, content)

    def link(self, name: str, target: str) -> None:
        """A symbolic link."""
        info = tarfile.TarInfo(name)
        info.type, info.linkname = tarfile.SYMTYPE, target
        self.add(info)

    def deb(self, deb: Path) -> None:
        """A package's files, except documentation."""
        with tarfile.open(fileobj=io.BytesIO(data(deb))) as tar:
            for member in tar:
                member.name = merged(member.name)
                if member.islnk():
                    member.linkname = merged(member.linkname)
                if not member.name or member.name.startswith(("usr/share/doc", "usr/share/man")):
                    continue
                file = tar.extractfile(member) if member.isfile() else None
                self.add(member, None if file is None else file.read())

    def save(self, path: Path, name: str, config: dict[str, object]) -> None:
        """The archive, as `docker save` writes one."""
        self.tar.close()
        digest = hashlib.sha256(self.path.read_bytes()).hexdigest()
        image = {
            "architecture": "amd64",
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        }
        manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
        with tarfile.open(path, "w") as tar:
            for member, value in (("config.json", image), ("manifest.json", manifest)):
                content = json.dumps(value).encode()
                info = tarfile.TarInfo(member)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            tar.add(self.path, "layer.tar")


def merged(name: str) -> str:
    """A path of a package in an image whose /bin, /lib and so on are links into /usr."""
    name = name.removeprefix("./").rstrip("/")
    first = name.split("/")[0]
    return f"usr/{name}" if first in MERGED else name
