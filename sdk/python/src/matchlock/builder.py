"""`CreateOptions`, one call at a time.

Every method changes the builder and returns it. Not here: any check; `Client.create` makes them.
"""

from __future__ import annotations

from collections.abc import Mapping

from .interception import NetworkInterceptionConfig, VFSInterceptionConfig
from .options import (
    CreateOptions,
    DiskConfig,
    HostIPMapping,
    ImageConfig,
    MountConfig,
    NetworkArrival,
    PortForward,
    Secret,
)


class Sandbox:
    """Fluent builder: `Sandbox("alpine:latest").with_memory(256).allow_host("example.org")`."""

    def __init__(self, image: str) -> None:
        self._options = CreateOptions(image=image)

    def options(self) -> CreateOptions:
        """The options so far; the builder's own object."""
        return self._options

    def with_privileged(self) -> Sandbox:
        """Lifts the restrictions on commands inside the sandbox."""
        self._options.privileged = True
        return self

    def with_kernel(self, ref: str) -> Sandbox:
        """Sets the guest kernel: `file:///absolute/path` or an OCI reference."""
        self._options.kernel_ref = ref
        return self

    def with_cpus(self, cpus: float) -> Sandbox:
        """Sets the CPUs; a fraction is a quota."""
        self._options.cpus = cpus
        return self

    def with_memory(self, mb: int) -> Sandbox:
        """Sets the memory in MB."""
        self._options.memory_mb = mb
        return self

    def with_disk_size(self, mb: int) -> Sandbox:
        """Sets the writable disk in MB."""
        self._options.disk_size_mb = mb
        return self

    def with_timeout(self, seconds: int) -> Sandbox:
        """Sets how long the sandbox may run."""
        self._options.timeout_seconds = seconds
        return self

    def with_workspace(self, path: str) -> Sandbox:
        """Sets the directory that commands start in unless they or the image name one."""
        self._options.workspace = path
        return self

    def with_env(self, name: str, value: str) -> Sandbox:
        """Sets a variable for every command; no secrets."""
        self._options.env[name] = value
        return self

    def with_env_map(self, env: Mapping[str, str]) -> Sandbox:
        """Sets several variables for every command; no secrets."""
        self._options.env.update(env)
        return self

    def allow_host(self, *hosts: str) -> Sandbox:
        """Adds hosts the guest may reach; wildcards allowed."""
        self._options.allowed_hosts.extend(hosts)
        return self

    def deny_host(self, *hosts: str) -> Sandbox:
        """Adds hosts the guest may not reach, whatever else is said; wildcards allowed."""
        self._options.denied_hosts.extend(hosts)
        return self

    def passthrough_host(self, *hosts: str) -> Sandbox:
        """Adds hosts whose TLS is not looked into."""
        self._options.passthrough_hosts.extend(hosts)
        return self

    def add_host(self, host: str, ip: str) -> Sandbox:
        """Adds a line to the guest's /etc/hosts."""
        self._options.add_hosts.append(HostIPMapping(host=host, ip=ip))
        return self

    def block_private_ips(self) -> Sandbox:
        """Blocks private addresses, and says so explicitly."""
        return self.with_block_private_ips(True)

    def allow_private_ips(self) -> Sandbox:
        """Allows private addresses."""
        return self.with_block_private_ips(False)

    def with_block_private_ips(self, enabled: bool) -> Sandbox:
        """Blocks or allows private addresses."""
        self._options.block_private_ips = enabled
        self._options.block_private_ips_set = True
        return self

    def unset_block_private_ips(self) -> Sandbox:
        """Goes back to the default for private addresses."""
        self._options.block_private_ips = False
        self._options.block_private_ips_set = False
        return self

    def with_no_network(self) -> Sandbox:
        """No network at all."""
        self._options.no_network = True
        return self

    def with_network_arrival(self, arrival: NetworkArrival) -> Sandbox:
        """How packets get out; with "tap" a sandbox on a host that gives none does not start."""
        self._options.network_arrival = arrival
        return self

    def with_network_mtu(self, mtu: int) -> Sandbox:
        """Sets the MTU of the guest's interface."""
        self._options.network_mtu = mtu
        return self

    def with_dns_servers(self, *servers: str) -> Sandbox:
        """Adds resolvers."""
        self._options.dns_servers.extend(servers)
        return self

    def with_hostname(self, hostname: str) -> Sandbox:
        """Sets the guest's host name."""
        self._options.hostname = hostname
        return self

    def with_network_interception(self, config: NetworkInterceptionConfig | None = None) -> Sandbox:
        """Intercepts HTTP, with rules or without."""
        self._options.force_interception = True
        self._options.network_interception = config
        return self

    def with_vfs_interception(self, config: VFSInterceptionConfig) -> Sandbox:
        """Sets rules on file operations."""
        self._options.vfs_interception = config
        return self

    def with_port_forward(self, local_port: int, remote_port: int) -> Sandbox:
        """Forwards a host port to a guest port once the sandbox runs."""
        self._options.port_forwards.append(PortForward(local_port=local_port, remote_port=remote_port))
        return self

    def with_port_forward_addresses(self, *addresses: str) -> Sandbox:
        """Adds host addresses that forwards listen on."""
        self._options.port_forward_addresses.extend(addresses)
        return self

    def add_secret(self, name: str, value: str, *hosts: str) -> Sandbox:
        """Adds a value that the guest knows by a placeholder only."""
        self._options.secrets.append(Secret(name=name, value=value, hosts=list(hosts)))
        return self

    def add_secret_with_placeholder(self, name: str, value: str, placeholder: str, *hosts: str) -> Sandbox:
        """Adds a value that the guest knows by this placeholder only."""
        secret = Secret(name=name, value=value, hosts=list(hosts), placeholder=placeholder)
        self._options.secrets.append(secret)
        return self

    def mount(self, guest_path: str, config: MountConfig) -> Sandbox:
        """Mounts according to `config`."""
        self._options.mounts[guest_path] = config
        return self

    def mount_host_dir(
        self,
        guest_path: str,
        host_path: str,
        *,
        owner_uid: int | None = None,
        owner_gid: int | None = None,
    ) -> Sandbox:
        """Mounts a host directory to read and write; ValueError for ids outside [0, 4294967295]."""
        return self._host_dir(guest_path, host_path, False, owner_uid, owner_gid)

    def mount_host_dir_readonly(
        self,
        guest_path: str,
        host_path: str,
        *,
        owner_uid: int | None = None,
        owner_gid: int | None = None,
    ) -> Sandbox:
        """Mounts a host directory to read only; ValueError for ids outside [0, 4294967295]."""
        return self._host_dir(guest_path, host_path, True, owner_uid, owner_gid)

    def mount_memory(self, guest_path: str) -> Sandbox:
        """Mounts an empty directory that is gone with the sandbox."""
        return self.mount(guest_path, MountConfig(type="memory"))

    def mount_overlay(self, guest_path: str, host_path: str) -> Sandbox:
        """Mounts a host directory whose changes stay in the sandbox."""
        return self.mount(guest_path, MountConfig(type="overlay", host_path=host_path))

    def with_disk(
        self,
        guest_path: str,
        source: str,
        *,
        readonly: bool = False,
        owner_uid: int | None = None,
        owner_gid: int | None = None,
    ) -> Sandbox:
        """Attaches an ext4 image, or a volume by `@name`; ValueError for ids outside [0, 4294967295]."""
        self._options.disks[guest_path] = DiskConfig(source, readonly, owner_uid, owner_gid)
        return self

    def with_user(self, user: str) -> Sandbox:
        """Sets the user that runs commands: `uid`, `uid:gid` or name."""
        self._image_config().user = user
        return self

    def with_entrypoint(self, *entrypoint: str) -> Sandbox:
        """Replaces the image's entrypoint; its command stays."""
        self._image_config().entrypoint = list(entrypoint)
        return self

    def with_init(self) -> Sandbox:
        """Puts a small init as PID 1 above the entrypoint; it reaps orphans."""
        self._options.init = True
        return self

    def with_image_config(self, config: ImageConfig) -> Sandbox:
        """Takes over every setting of `config` that is not empty."""
        mine = self._image_config()
        mine.user = config.user or mine.user
        mine.working_dir = config.working_dir or mine.working_dir
        mine.entrypoint = list(config.entrypoint or mine.entrypoint)
        mine.cmd = list(config.cmd or mine.cmd)
        mine.env = dict(config.env or mine.env)
        return self

    def _host_dir(
        self, guest_path: str, host_path: str, readonly: bool, owner_uid: int | None, owner_gid: int | None
    ) -> Sandbox:
        config = MountConfig(
            type="host_fs",
            host_path=host_path,
            readonly=readonly,
            owner_uid=owner_uid,
            owner_gid=owner_gid,
        )
        return self.mount(guest_path, config)

    def _image_config(self) -> ImageConfig:
        if self._options.image_config is None:
            self._options.image_config = ImageConfig()
        return self._options.image_config
