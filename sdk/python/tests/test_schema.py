"""The messages of the client against the server's schema: every method is known, every member has its name and type."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from matchlock import (
    Client,
    ImageConfig,
    MountConfig,
    NetworkBodyTransform,
    NetworkHookRule,
    NetworkInterceptionConfig,
    Sandbox,
    VFSHookRule,
    VFSInterceptionConfig,
)

SCHEMA = Path(__file__).resolve().parent.parent.parent / "wire" / "schema" / "rpc.json"

TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}


def wrong(value: Any, schema: Any, document: Any, where: str) -> list[str]:
    """The faults of a value by the schema: the part of JSON Schema that the document uses."""
    if schema is True:
        return []
    if "$ref" in schema:
        return wrong(value, document["$defs"][schema["$ref"].rpartition("/")[2]], document, where)
    if "anyOf" in schema:
        tried = [wrong(value, choice, document, where) for choice in schema["anyOf"]]
        return [] if [] in tried else max(tried, key=len)
    types = schema.get("type", [])
    allowed = tuple(one for name in ([types] if isinstance(types, str) else types) for one in TYPES[name])
    if allowed and (not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed)):
        return [f"{where}: {value!r} is no {types}"]
    if isinstance(value, list):
        items = schema.get("items", True)
        return [line for item in value for line in wrong(item, items, document, f"{where}[]")]
    found = []
    if isinstance(value, dict):
        others = schema.get("additionalProperties")
        for name, member in value.items():
            part = schema.get("properties", {}).get(name, others)
            if part is None:
                found.append(f"{where}.{name}: unknown")
            else:
                found += wrong(member, part, document, f"{where}.{name}")
    return found


def everything(client: Client) -> None:
    """Every request there is, with everything that can go with it."""
    sandbox = (
        Sandbox("i1")
        .with_privileged()
        .with_kernel("file:///k")
        .with_cpus(0.5)
        .with_memory(256)
        .with_disk_size(1024)
        .with_timeout(60)
        .with_disk("/data", "@data", owner_uid=1, owner_gid=2)
        .with_disk("/a", "/a.ext4", readonly=True)
        .with_env("A", "1")
        .with_image_config(ImageConfig("u", "/w", ["e"], ["c"], {"B": "2"}))
        .with_workspace("/workspace")
        .mount("/workspace/a", MountConfig("host_fs", "/a", True, 1, 2, cache="none"))
        .with_vfs_interception(
            VFSInterceptionConfig(True, [VFSHookRule("n", "before", ["create"], "/*", "block", timeout_ms=1)])
        )
        .allow_host("h")
        .add_host("h", "1.2.3.4")
        .add_secret_with_placeholder("S", "v", "p", "h")
        .with_dns_servers("1.1.1.1")
        .with_hostname("h")
        .with_network_mtu(1400)
        .with_network_interception(
            NetworkInterceptionConfig(
                [
                    NetworkHookRule(
                        "n",
                        "after",
                        ["h"],
                        ["GET"],
                        "/",
                        "mutate",
                        {"a": "b"},
                        ["c"],
                        {"d": "e"},
                        ["f"],
                        "/g",
                        {"h": "i"},
                        ["j"],
                        [NetworkBodyTransform("k", "l")],
                        1,
                    ),
                    NetworkHookRule(hook=lambda _: None),
                ]
            )
        )
        .deny_host("evil.test")
        .passthrough_host("pinned.test")
        .with_network_arrival("tap")
        .with_port_forward(1, 2)
        .with_port_forward_addresses("127.0.0.1")
    )
    client.launch(sandbox)
    client.launch(Sandbox("i2").with_no_network())
    client.exec("echo x", "/w", user="u")
    client.exec(["echo", "x"], env={"A": "1"})
    client.exec_stream("echo x", io.StringIO(), io.StringIO(), "/w")
    client.exec_pipe("cat", io.StringIO("x"), user="u")
    client.exec_interactive("cat", io.StringIO("x"), resize=[(1, 2)])
    process = client.exec_detached(["x"])
    process.terminate()
    process.kill()
    process.output()
    process.wait()
    client.processes()
    client.write_file("/a", "x")
    client.upload("/a", io.BytesIO(b"x" * (2 << 20)))
    client.read_file("/a")
    client.download("/a", io.BytesIO(), 1, 2)
    client.list_files("/")
    client.stat("/a", follow=False)
    client.mkdir("/a", parents=True)
    client.remove_file("/a", recursive=True)
    client.rename("/a", "/b")
    client.watch("/a", recursive=True).close()
    client.log()
    with pytest.raises(TimeoutError):
        client.log_stream(timeout=0.05)
    client.port_forward_with_addresses(["::1"], "1:2")
    client.allow_list_add("b.test")
    client.allow_list_delete("b.test")
    client.add_mount("/b", MountConfig("host_fs", "/a", True, 1, 2, cache="none", mask=["x"], protect=True))
    client.remove_mount("/b", force=True)
    client.mounts()


@pytest.mark.skipif(not SCHEMA.exists(), reason="the schema is part of the repository, not of the package")
def test_every_request_is_in_the_schema(client: Client) -> None:
    document = json.loads(SCHEMA.read_text())
    everything(client)
    sent = json.loads(client.exec("requests").stdout)
    answered, unanswered = document["requests"], document["fire_and_forget"]
    for request in sent:
        method = request["method"]
        assert method in answered or method in unanswered, method
        schema = (answered.get(method) or unanswered[method])["params"]
        assert wrong(request.get("params", {}), schema, document, method) == []
    missing = {*answered, *unanswered} - {request["method"] for request in sent}
    assert missing == {"close"}


def test_the_checker_sees_what_is_wrong() -> None:
    document = {"$defs": {"A": {"type": "object", "properties": {"a": {"type": ["integer", "null"]}}}}}
    schema = {"anyOf": [{"$ref": "#/$defs/A"}, {"type": "null"}]}
    assert wrong({"a": 1}, schema, document, "x") == wrong(None, schema, document, "x") == []
    assert wrong({"b": 1}, schema, document, "x") == ["x.b: unknown"]
    for value in ("1", True, 1.5):
        assert wrong({"a": value}, schema, document, "x") != []
