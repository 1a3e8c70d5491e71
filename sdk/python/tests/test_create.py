"""The messages of `create` for every option, and the options that it refuses by itself."""

from __future__ import annotations

from typing import Any

import pytest
from helpers import params, requests

from matchlock import (
    AllowList,
    Client,
    Config,
    CreateOptions,
    HostIPMapping,
    ImageConfig,
    MatchlockError,
    MountConfig,
    MountInfo,
    NetworkHookRule,
    NetworkInterceptionConfig,
    PortForward,
    RPCError,
    Sandbox,
    Secret,
)


def sent(client: Client, sandbox: Sandbox) -> Any:
    client.create(sandbox.options())
    return params(client, "create")


def test_only_what_was_said_is_sent(client: Client) -> None:
    assert sent(client, Sandbox("image2")) == {"image": "image2"}
    assert client.vm_id == "vm-00000002"


def test_every_option_of_a_machine(client: Client) -> None:
    sandbox = (
        Sandbox("i3")
        .with_privileged()
        .with_kernel("file:///k")
        .with_cpus(0.5)
        .with_memory(256)
        .with_disk_size(1024)
        .with_timeout(60)
        .with_env("A", "1")
        .with_env_map({"B": "2"})
        .with_user("1000:1000")
        .with_entrypoint("sleep", "10")
        .with_image_config(ImageConfig(working_dir="/w", cmd=["x"], env={"C": "3"}))
    )
    assert sent(client, sandbox) == {
        "image": "i3",
        "privileged": True,
        "kernel": {"ref": "file:///k"},
        "resources": {"cpus": 0.5, "memory_mb": 256, "disk_size_mb": 1024, "time_limit_seconds": 60},
        "env": {"A": "1", "B": "2"},
        "image_config": {
            "user": "1000:1000",
            "working_dir": "/w",
            "entrypoint": ["sleep", "10"],
            "cmd": ["x"],
            "env": {"C": "3"},
        },
    }


def test_disks(client: Client) -> None:
    sandbox = (
        Sandbox("i3").with_disk("/data", "@data", owner_uid=0, owner_gid=7).with_disk("/a", "/a.ext4", readonly=True)
    )
    assert sent(client, sandbox) == {
        "image": "i3",
        "extra_disks": [
            {"host_path": "@data", "guest_mount": "/data", "owner_uid": 0, "owner_gid": 7},
            {"host_path": "/a.ext4", "guest_mount": "/a", "readonly": True},
        ],
    }
    with pytest.raises(ValueError, match=r"owner_gid must be in \[0, 4294967295\], got -1"):
        Sandbox("i3").with_disk("/data", "@data", owner_gid=-1)


def test_every_option_of_a_network(client: Client) -> None:
    sandbox = (
        Sandbox("i3")
        .allow_host("a.example", "*.b.example")
        .add_host("db", "10.0.0.1")
        .with_network_mtu(1200)
        .with_dns_servers("1.1.1.1")
        .with_hostname("box")
        .add_secret("KEY", "value", "a.example")
        .add_secret_with_placeholder("K2", "v2", "ph", "b.example")
        .with_network_interception()
    )
    assert sent(client, sandbox)["network"] == {
        "allowed_hosts": ["a.example", "*.b.example"],
        "block_private_ips": True,
        "add_hosts": [{"host": "db", "ip": "10.0.0.1"}],
        "mtu": 1200,
        "dns_servers": ["1.1.1.1"],
        "hostname": "box",
        "secrets": {
            "KEY": {"value": "value", "hosts": ["a.example"]},
            "K2": {"value": "v2", "hosts": ["b.example"], "placeholder": "ph"},
        },
        "intercept": True,
    }


def test_private_addresses(client: Client) -> None:
    assert "network" not in sent(client, Sandbox("i3"))
    for sandbox, blocked in (
        (Sandbox("i3").block_private_ips(), True),
        (Sandbox("i3").with_block_private_ips(True), True),
        (Sandbox("i3").allow_private_ips(), False),
        (Sandbox("i3").with_block_private_ips(False), False),
        (Sandbox("i3").with_network_mtu(1400), True),
    ):
        assert sent(client, sandbox)["network"]["block_private_ips"] is blocked
    assert "network" not in sent(client, Sandbox("i3").allow_private_ips().unset_block_private_ips())
    client.create(CreateOptions(image="i3", block_private_ips=True))
    assert params(client, "create")["network"]["block_private_ips"] is True


def test_lists_and_the_way_of_packets(client: Client) -> None:
    sandbox = Sandbox("i3").deny_host("a.test", "*.b.test").passthrough_host("c.test").with_network_arrival("tap")
    assert sent(client, sandbox)["network"] == {
        "allowed_hosts": [],
        "block_private_ips": True,
        "denied_hosts": ["a.test", "*.b.test"],
        "passthrough_hosts": ["c.test"],
        "arrival": "tap",
    }
    assert "network" not in sent(client, Sandbox("i3").with_network_arrival("auto"))


def test_no_network(client: Client) -> None:
    sandbox = Sandbox("i3").with_no_network().with_hostname("h").with_dns_servers("1.1.1.1").with_network_mtu(1400)
    network = {"no_network": True, "hostname": "h", "dns_servers": ["1.1.1.1"]}
    assert sent(client, sandbox)["network"] == network


def test_mounts(client: Client) -> None:
    sandbox = (
        Sandbox("i3")
        .mount_host_dir("/workspace/a", "/a", owner_uid=0, owner_gid=4294967295)
        .mount_host_dir_readonly("/workspace/b", "/b", owner_uid=7)
        .mount_memory("/workspace/c")
        .mount_overlay("/workspace/d", "/d")
        .mount("/workspace/e", MountConfig(type="real_fs", host_path="/e"))
        .mount("/workspace/f", MountConfig(type="host_fs", host_path="/f", cache="always"))
    )
    assert sent(client, sandbox)["vfs"] == {
        # Mounts without a workspace are below /workspace, as the documents show.
        "workspace": "/workspace",
        "mounts": {
            "/workspace/a": {"type": "host_fs", "host_path": "/a", "owner_uid": 0, "owner_gid": 4294967295},
            "/workspace/b": {"type": "host_fs", "host_path": "/b", "readonly": True, "owner_uid": 7},
            "/workspace/c": {"type": "memory"},
            "/workspace/d": {"type": "overlay", "host_path": "/d"},
            # The old name of the same thing.
            "/workspace/e": {"type": "host_fs", "host_path": "/e"},
            "/workspace/f": {"type": "host_fs", "host_path": "/f", "cache": "always"},
        },
    }
    assert sent(client, Sandbox("i3").with_workspace("/code"))["vfs"] == {"workspace": "/code"}
    vfs = sent(client, Sandbox("i3").with_workspace("/code").mount_memory("/code/x"))["vfs"]
    assert vfs["workspace"] == "/code"


@pytest.mark.parametrize("value", [-1, 2**32, "0", 1.5, True])
def test_owners_outside_their_range(value: Any) -> None:
    with pytest.raises(ValueError, match=r"owner_uid must be in \[0, 4294967295\], got"):
        Sandbox("i").mount_host_dir("/w", "/h", owner_uid=value)
    with pytest.raises(ValueError, match="owner_gid"):
        Sandbox("i").mount_host_dir_readonly("/w", "/h", owner_gid=value)
    with pytest.raises(ValueError, match="owner_gid"):
        MountConfig(type="host_fs", host_path="/h", owner_gid=value)


def test_launch_starts_the_entrypoint_and_leaves_the_builder_alone(client: Client) -> None:
    sandbox = Sandbox("i4")
    assert client.launch(sandbox) == "vm-00000004"
    assert params(client, "create") == {"image": "i4", "launch_entrypoint": True}
    assert sandbox.options() == CreateOptions(image="i4")
    client.launch(sandbox.with_init())
    assert params(client, "create") == {"image": "i4", "launch_entrypoint": True, "init": True}


def test_port_forwards_of_the_builder_follow_create(client: Client) -> None:
    sandbox = Sandbox("i4").with_port_forward(18080, 8080).with_port_forward(1, 2)
    client.launch(sandbox.with_port_forward_addresses("127.0.0.1", "::1"))
    assert params(client, "port_forward") == {
        "forwards": [{"local_port": 18080, "remote_port": 8080}, {"local_port": 1, "remote_port": 2}],
        "addresses": ["127.0.0.1", "::1"],
    }


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (None, "image is required (e.g., alpine:latest)"),
        (CreateOptions(image="a", network_mtu=-1), "network mtu must be > 0"),
        (CreateOptions(image="a", no_network=True, allowed_hosts=["a"]), "no network cannot be combined with"),
        (CreateOptions(image="a", no_network=True, denied_hosts=["a"]), "no network cannot be combined with"),
        (CreateOptions(image="a", no_network=True, passthrough_hosts=["a"]), "no network cannot be combined with"),
        (CreateOptions(image="a", no_network=True, secrets=[Secret("a", "b")]), "no network cannot be combined with"),
        (CreateOptions(image="a", no_network=True, force_interception=True), "no network cannot be combined with"),
        (
            CreateOptions(image="a", no_network=True, network_interception=NetworkInterceptionConfig()),
            "no network cannot be combined with",
        ),
    ],
)
def test_refused_without_asking_the_server(client: Client, options: CreateOptions | None, text: str) -> None:
    before = len(requests(client, "create"))
    with pytest.raises(MatchlockError) as caught:
        client.create(options)
    assert str(caught.value).startswith(text)
    assert len(requests(client, "create")) == before


def test_a_refused_create_leaves_the_id(client: Client) -> None:
    with pytest.raises(RPCError) as caught:
        client.launch(Sandbox("missing"))
    assert caught.value.is_vm_error()
    with pytest.raises(MatchlockError, match="invalid create response: missing id"):
        client.launch(Sandbox("nothing"))
    assert client.vm_id == "vm-00000001"


def test_direct_options_and_defaults() -> None:
    assert Config() == Config(binary_path="matchlock", use_sudo=False)
    assert MountConfig() == MountConfig("memory", "", False, None, None)
    assert Secret("n", "v", ["h"]) == Secret(name="n", value="v", hosts=["h"], placeholder="")
    assert "value" not in repr(Secret("n", "value"))
    assert CreateOptions().mounts == {} and CreateOptions().cpus == 0
    assert HostIPMapping("a", "b").ip == "b" and PortForward(1, 2).remote_port == 2
    options = Sandbox("i").with_network_interception(NetworkInterceptionConfig([NetworkHookRule()])).options()
    assert options.force_interception and options.network_interception is not None


def test_mounts_of_a_running_sandbox(client: Client) -> None:
    client.launch(Sandbox("i5"))
    client.add_mount("/code", MountConfig("host_fs", "/h", readonly=True, mask=[".env*"]))
    mount = {"type": "host_fs", "host_path": "/h", "readonly": True, "mask": [".env*"]}
    assert params(client, "mount_add") == {"guest_path": "/code", "mount": mount}
    client.add_mount("/memory")
    assert params(client, "mount_add") == {"guest_path": "/memory", "mount": {"type": "memory"}}
    first, second = client.mounts()
    assert first == MountInfo("/a", "host_fs", "/h", readonly=True)
    assert (second.added, second.failure) == (True, "gone")
    with pytest.raises(RPCError, match="what is mounted at /busy is in use") as caught:
        client.remove_mount("/busy")
    assert caught.value.is_vm_error()
    client.remove_mount("/busy", force=True)
    assert params(client, "mount_remove") == {"guest_path": "/busy", "force": True}


def test_port_specs(client: Client) -> None:
    bindings = client.port_forward("18080:8080", " 9090 ")
    found = [(binding.address, binding.local_port, binding.remote_port) for binding in bindings]
    assert found == [("127.0.0.1", 18080, 8080), ("127.0.0.1", 9090, 9090)]
    bindings = client.port_forward_with_addresses(["0.0.0.0"], "1:2")
    assert bindings[0].address == "0.0.0.0"
    assert client.port_forward() == []
    with pytest.raises(MatchlockError, match="invalid port_forward response: binding address is required"):
        client.port_forward("666")


def test_allow_list(client: Client) -> None:
    assert client.allow_list_add("b.test", "*.c.test") == AllowList(["b.test", "*.c.test"], ["a", "b.test", "*.c.test"])
    assert client.allow_list_delete("a") == AllowList(["a"], [])
    with pytest.raises(MatchlockError, match="allowed_hosts must be a list of strings"):
        client.allow_list_add("odd")


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("", "invalid port-forward spec: empty spec"),
        ("a", "invalid port value 'a'"),
        ("0", "invalid port value 0: must be in range 1-65535"),
        ("65536:1", "invalid port value 65536: must be in range 1-65535"),
        (":1", "invalid port-forward spec: empty local port"),
        ("1:", "invalid port-forward spec: empty remote port"),
        ("1:2:3", "invalid port-forward spec: '1:2:3' (expected [LOCAL_PORT:]REMOTE_PORT)"),
    ],
)
def test_bad_port_specs(client: Client, spec: str, text: str) -> None:
    with pytest.raises(MatchlockError) as caught:
        client.port_forward(spec)
    assert str(caught.value) == text
