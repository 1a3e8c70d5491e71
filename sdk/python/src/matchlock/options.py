"""The options for reaching matchlock, and for making a sandbox.

Plain data. Not here: their form on the wire as a whole (`wire`), and the fluent form (`builder`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from .interception import NetworkInterceptionConfig, VFSInterceptionConfig

NetworkArrival: TypeAlias = Literal["auto", "tap", "none"]
"""How a guest's packets get out."""

_MAX_ID = 0xFFFF_FFFF


@dataclass
class Config:
    """The way to run matchlock."""

    binary_path: str = "matchlock"
    """The program; a bare name is looked up on PATH."""

    use_sudo: bool = False
    """Run the server through sudo."""


def _check_owner(value: object, name: str) -> None:
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MAX_ID:
        raise ValueError(f"{name} must be in [0, {_MAX_ID}], got {value}")


@dataclass
class MountConfig:
    """The content of a guest directory."""

    type: str = "memory"
    """`memory`, `host_fs` or `overlay`; `real_fs` is the old name of `host_fs`."""

    host_path: str = ""
    """The host's file or directory, for `host_fs` and `overlay`."""

    readonly: bool = False
    """Refuse every change."""

    owner_uid: int | None = None
    """`host_fs`: the user who owns files to which the guest gave no other; in [0, 4294967295]."""

    owner_gid: int | None = None
    """`host_fs`: the group of files to which the guest gave no other; in [0, 4294967295]."""

    cache: str = field(default="", kw_only=True)
    """`host_fs`: when the guest sees what the host changes: `none` (at once), `auto` (at the next open; attributes
    within a second), `always` (within an hour: nobody else changes the files). Empty is `auto`."""

    mask: list[str] = field(default_factory=list[str], kw_only=True)
    """Globs of names that the guest does not see: from the mount on with a slash in front, else anywhere in it."""

    mask_readonly: list[str] = field(default_factory=list[str], kw_only=True)
    """Globs of names that the guest cannot change."""

    protect: bool = field(default=False, kw_only=True)
    """The guest cannot change what programs of the host run or obey by themselves, such as hooks of git."""

    def __post_init__(self) -> None:
        _check_owner(self.owner_uid, "owner_uid")
        _check_owner(self.owner_gid, "owner_gid")

    def to_dict(self) -> dict[str, Any]:
        """The mount as the server reads it."""
        wire: dict[str, Any] = {"type": "host_fs" if self.type == "real_fs" else self.type}
        if self.host_path:
            wire["host_path"] = self.host_path
        if self.readonly:
            wire["readonly"] = True
        if self.owner_uid is not None:
            wire["owner_uid"] = self.owner_uid
        if self.owner_gid is not None:
            wire["owner_gid"] = self.owner_gid
        if self.cache:
            wire["cache"] = self.cache
        if self.mask:
            wire["mask"] = list(self.mask)
        if self.mask_readonly:
            wire["mask_readonly"] = list(self.mask_readonly)
        if self.protect:
            wire["protect"] = True
        return wire


@dataclass
class DiskConfig:
    """An ext4 image of the host as a disk."""

    source: str
    """The image: a path, or `@` and the name of a volume."""

    readonly: bool = False
    """Refuse every change; several sandboxes may then have it at once."""

    owner_uid: int | None = None
    """The new owner of its root directory; in [0, 4294967295]."""

    owner_gid: int | None = None
    """The new group of its root directory; in [0, 4294967295]."""

    def __post_init__(self) -> None:
        _check_owner(self.owner_uid, "owner_uid")
        _check_owner(self.owner_gid, "owner_gid")

    def to_dict(self, guest_path: str) -> dict[str, Any]:
        """The disk as the server reads it."""
        wire: dict[str, Any] = {"host_path": self.source, "guest_mount": guest_path}
        if self.readonly:
            wire["readonly"] = True
        if self.owner_uid is not None:
            wire["owner_uid"] = self.owner_uid
        if self.owner_gid is not None:
            wire["owner_gid"] = self.owner_gid
        return wire


@dataclass
class Secret:
    """A value that the guest never sees: it gets a placeholder, which is replaced on the way to the given hosts."""

    name: str
    """Environment variable that holds the placeholder."""

    value: str = field(repr=False)
    """The real value."""

    hosts: list[str] = field(default_factory=list[str])
    """Hosts that it may go to; wildcards allowed."""

    placeholder: str = field(default="", kw_only=True)
    """A placeholder of the caller's choice."""


@dataclass
class ImageConfig:
    """Values in place of the image's own settings."""

    user: str = ""
    """`uid`, `uid:gid` or name."""

    working_dir: str = ""
    """Working directory of commands."""

    entrypoint: list[str] = field(default_factory=list[str])
    """Program to launch."""

    cmd: list[str] = field(default_factory=list[str])
    """Its arguments."""

    env: dict[str, str] = field(default_factory=dict[str, str])
    """Environment of every command."""

    def to_dict(self) -> dict[str, Any]:
        """The settings as the server reads them; empty ones leave the image's."""
        members: dict[str, Any] = {
            "user": self.user,
            "working_dir": self.working_dir,
            "entrypoint": list(self.entrypoint),
            "cmd": list(self.cmd),
            "env": dict(self.env),
        }
        return {name: value for name, value in members.items() if value}


@dataclass
class PortForward:
    """A host port whose connections go to a guest port."""

    local_port: int
    remote_port: int


@dataclass
class HostIPMapping:
    """A line of the guest's /etc/hosts."""

    host: str
    ip: str


@dataclass
class CreateOptions:
    """The sandbox to make. Zero and empty mean the server's default."""

    image: str = ""
    """Container image; required."""

    kernel_ref: str = ""
    """Guest kernel: empty, `file:///absolute/path`, or an OCI reference."""

    privileged: bool = False
    """No restrictions on commands inside the sandbox."""

    cpus: float = 0
    """CPUs; fractions are a quota."""

    memory_mb: int = 0
    """Memory."""

    disk_size_mb: int = 0
    """Writable disk."""

    timeout_seconds: int = 0
    """How long the sandbox may run; then it ends, and requests in flight fail."""

    allowed_hosts: list[str] = field(default_factory=list[str])
    """Hosts that the guest may reach; wildcards allowed."""

    denied_hosts: list[str] = field(default_factory=list[str], kw_only=True)
    """Hosts that the guest may not reach, whatever else is said; wildcards allowed."""

    passthrough_hosts: list[str] = field(default_factory=list[str], kw_only=True)
    """Hosts whose TLS is not looked into."""

    network_arrival: NetworkArrival = field(default="auto", kw_only=True)
    """How packets get out; "auto" is none on a host that gives nothing else, if nothing else is said of a network."""

    add_hosts: list[HostIPMapping] = field(default_factory=list[HostIPMapping])
    """Lines of the guest's /etc/hosts."""

    block_private_ips: bool = False
    """Keep the guest from private addresses; see `block_private_ips_set`."""

    block_private_ips_set: bool = False
    """Whether `block_private_ips` counts; otherwise private addresses are blocked."""

    no_network: bool = False
    """No network at all."""

    force_interception: bool = False
    """Intercept HTTP even without rules, allow list and secrets."""

    network_interception: NetworkInterceptionConfig | None = None
    """Rules on HTTP traffic."""

    mounts: dict[str, MountConfig] = field(default_factory=dict[str, MountConfig])
    """Mounts by guest path."""

    env: dict[str, str] = field(default_factory=dict[str, str])
    """Environment of every command; no secrets."""

    vfs_interception: VFSInterceptionConfig | None = None
    """Rules on file operations."""

    secrets: list[Secret] = field(default_factory=list[Secret])
    """Values that the guest never sees."""

    workspace: str = ""
    """Directory that commands start in unless they or the image name one; `/workspace` when there are mounts."""

    dns_servers: list[str] = field(default_factory=list[str])
    """Resolvers."""

    hostname: str = ""
    """Guest host name; the sandbox's id by default."""

    network_mtu: int = 0
    """MTU of the guest's interface."""

    port_forwards: list[PortForward] = field(default_factory=list[PortForward])
    """Forwards set up once the sandbox runs."""

    port_forward_addresses: list[str] = field(default_factory=list[str])
    """Host addresses of the listeners; 127.0.0.1 by default."""

    image_config: ImageConfig | None = None
    """Values in place of the image's own settings."""

    launch_entrypoint: bool = False
    """Start the image's entrypoint."""

    disks: dict[str, DiskConfig] = field(default_factory=dict[str, DiskConfig], kw_only=True)
    """Disks by guest path; at most 8."""

    init: bool = field(default=False, kw_only=True)
    """A small init as PID 1 above the entrypoint, which reaps orphans."""
