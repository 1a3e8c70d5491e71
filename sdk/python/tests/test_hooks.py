"""Hooks on file operations and on HTTP traffic."""

from __future__ import annotations

import json
import os
import socket
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from helpers import eventually, params, requests, threads

from matchlock import (
    Client,
    CreateOptions,
    MatchlockError,
    NetworkBodyTransform,
    NetworkHookRequest,
    NetworkHookRequestMutation,
    NetworkHookResponseMutation,
    NetworkHookResult,
    NetworkHookRule,
    NetworkInterceptionConfig,
    RPCError,
    Sandbox,
    VFSActionRequest,
    VFSHookEvent,
    VFSHookRule,
    VFSInterceptionConfig,
    VFSMutateRequest,
)


def with_rules(client: Client, *rules: VFSHookRule, emit_events: bool = False) -> Any:
    config = VFSInterceptionConfig(emit_events=emit_events, rules=list(rules))
    client.create(Sandbox("i5").with_vfs_interception(config).options())
    return params(client, "create").get("vfs")


def test_rules_go_to_the_server_and_callbacks_stay(client: Client) -> None:
    rule = VFSHookRule(name="n", phase="before", ops=["create"], path="/w/*", action="block", timeout_ms=5)
    sent = with_rules(client, rule, VFSHookRule(action_hook=lambda _: "allow"))
    wire = {"name": "n", "phase": "before", "ops": ["create"], "path": "/w/*", "action": "block", "timeout_ms": 5}
    assert sent == {"interception": {"rules": [wire]}}
    assert with_rules(client, VFSHookRule(mutate_hook=lambda _: None)) is None
    sent = with_rules(client, VFSHookRule(phase="after", hook=lambda _: None))
    assert sent == {"interception": {"emit_events": True}}
    assert with_rules(client, emit_events=True) == {"interception": {"emit_events": True}}


def test_an_action_hook_decides(client: Client) -> None:
    seen: list[VFSActionRequest] = []

    def decide(request: VFSActionRequest) -> Any:
        seen.append(request)
        return {"/no": "block", "/odd": "perhaps", "/empty": ""}.get(request.path, "ALLOW ")

    with_rules(client, VFSHookRule(name="h", ops=["write", "read", "readdir"], action_hook=decide))
    client.write_file("/yes", "abc", mode=0o600)
    client.write_file("/empty", "abc")
    assert seen[0] == VFSActionRequest("write", "/yes", 3, 0o600, os.geteuid(), os.getegid())
    with pytest.raises(MatchlockError, match="vfs action hook blocked operation: op=read path=/no hook='h'"):
        client.read_file("/no")
    with pytest.raises(MatchlockError, match="op=readdir"):
        client.list_files("/no")
    with pytest.raises(MatchlockError, match="invalid action_hook return value for 'h': expected 'allow'|'block'"):
        client.write_file("/odd", "")
    client.stat("/no")


def test_a_mutate_hook_replaces_what_is_written(client: Client) -> None:
    seen: list[VFSMutateRequest] = []

    def mutate(request: VFSMutateRequest) -> Any:
        seen.append(request)
        return {"/text": "téxt", "/bytes": b"\x00", "/odd": 7}.get(request.path)

    with_rules(client, VFSHookRule(name="m", path="/*", mutate_hook=mutate))
    for path in ("/text", "/bytes", "/same"):
        client.write_file(path, "original")
    assert [client.read_file(path) for path in ("/text", "/bytes", "/same")] == [
        "téxt".encode(),
        b"\x00",
        b"original",
    ]
    assert (seen[0].path, seen[0].size, seen[0].mode) == ("/text", 8, 0o644)
    with pytest.raises(MatchlockError, match="invalid mutate_hook return type for 'm'"):
        client.write_file("/odd", "x")


def test_an_after_hook_hears_of_events_and_never_of_its_own(client: Client) -> None:
    seen: list[VFSHookEvent] = []
    done = threading.Event()

    def after(event: VFSHookEvent) -> None:
        seen.append(event)
        client.write_file("/workspace/log", "x")
        done.set()
        raise RuntimeError("nobody hears")

    with_rules(client, VFSHookRule(phase="after", ops=["write"], path="/workspace/*", hook=after))
    client.write_file("/workspace/a", "abc")
    assert done.wait(10)
    eventually(lambda: "matchlock-hook" not in threads())
    assert seen == [VFSHookEvent("write", "/workspace/a", 3, 0o644, 0, 0)]
    client.write_file("/elsewhere", "abc")
    client.write_file("/workspace/b", "abc")
    eventually(lambda: len(seen) == 2)


def test_a_dangerous_hook_gets_the_client_and_every_event(client: Client) -> None:
    seen: list[str] = []

    def after(inner: Client, event: VFSHookEvent) -> None:
        seen.append(event.path)
        if event.path == "/workspace/a":
            assert inner.exec("echo x").stdout == "x"
            inner.write_file("/workspace/b", "x")

    with_rules(client, VFSHookRule(phase="after", dangerous_hook=after))
    client.write_file("/workspace/a", "abc")
    eventually(lambda: sorted(seen) == ["/workspace/a", "/workspace/b"])


def test_a_flood_of_events_does_not_become_a_flood_of_threads(client: Client) -> None:
    leave = threading.Event()
    with_rules(client, VFSHookRule(phase="after", dangerous_hook=lambda _c, _e: leave.wait(10)))
    client.exec("events 1000")
    assert len([name for name in threads() if name == "matchlock-hook"]) <= 64
    leave.set()


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (
            VFSHookRule(name="r", hook=lambda _: None, mutate_hook=lambda _: None),
            "cannot set more than one callback hook",
        ),
        (VFSHookRule(name="r", hook=lambda _: None), "callback hooks must use phase=after"),
        (
            VFSHookRule(name="r", phase="after", action="block", hook=lambda _: None),
            "callback hooks cannot set action=",
        ),
        (VFSHookRule(name="r", dangerous_hook=lambda _c, _e: None), "dangerous_hook must use phase=after"),
        (
            VFSHookRule(name="r", phase="after", action="block", dangerous_hook=lambda _c, _e: None),
            "dangerous_hook cannot set action='block'",
        ),
        (VFSHookRule(name="r", phase="after", mutate_hook=lambda _: None), "mutate_hook must use phase=before"),
        (VFSHookRule(name="r", action="block", mutate_hook=lambda _: None), "mutate_hook cannot set action='block'"),
        (VFSHookRule(name="r", phase="after", action_hook=lambda _: "allow"), "action_hook must use phase=before"),
        (
            VFSHookRule(name="r", action="block", action_hook=lambda _: "allow"),
            "action_hook cannot set action='block'",
        ),
    ],
)
def test_rules_that_contradict_themselves(client: Client, rule: VFSHookRule, text: str) -> None:
    with pytest.raises(MatchlockError) as caught:
        with_rules(client, rule)
    assert str(caught.value).startswith(f"invalid vfs hook 'r': {text}")


def test_mutate_write_is_no_action_of_the_server(client: Client) -> None:
    action: Any = "mutate_write"
    with pytest.raises(MatchlockError, match="mutate_write requires mutate_hook callback"):
        with_rules(client, VFSHookRule(name="r", action=action))


def intercept(client: Client, *rules: NetworkHookRule) -> Any:
    client.create(Sandbox("i6").with_network_interception(NetworkInterceptionConfig(list(rules))).options())
    return params(client, "create")["network"]


def ask(client: Client, **request: Any) -> Any:
    return json.loads(client.exec(f"callback {json.dumps(request)}").stdout)


def test_declared_rules(client: Client) -> None:
    rule = NetworkHookRule(
        name="n",
        phase="after",
        hosts=["h"],
        methods=["GET"],
        path="/p",
        action="mutate",
        set_headers={"A": "1"},
        delete_headers=["B"],
        set_query={"q": "1"},
        delete_query=["r"],
        rewrite_path="/q",
        set_response_headers={"C": "2"},
        delete_response_headers=["D"],
        body_replacements=[NetworkBodyTransform("foo", "bar"), NetworkBodyTransform("gone")],
        timeout_ms=9,
    )
    network = intercept(client, rule)
    assert network["intercept"] is True
    assert network["interception"] == {
        "rules": [
            {
                "name": "n",
                "phase": "after",
                "hosts": ["h"],
                "methods": ["GET"],
                "path": "/p",
                "action": "mutate",
                "set_headers": {"A": "1"},
                "delete_headers": ["B"],
                "set_query": {"q": "1"},
                "delete_query": ["r"],
                "rewrite_path": "/q",
                "set_response_headers": {"C": "2"},
                "delete_response_headers": ["D"],
                "body_replacements": [{"find": "foo", "replace": "bar"}, {"find": "gone"}],
                "timeout_ms": 9,
            }
        ]
    }


def test_the_callback_socket(client: Client) -> None:
    seen: list[NetworkHookRequest] = []

    def before(request: NetworkHookRequest) -> NetworkHookResult:
        seen.append(request)
        return NetworkHookResult(
            action="mutate",
            request=NetworkHookRequestMutation(headers={"X": ["1"]}, query={}, path="/new"),
        )

    def after(request: NetworkHookRequest) -> NetworkHookResult | None:
        if request.status_code != 200:
            return None
        return NetworkHookResult(
            response=NetworkHookResponseMutation(
                headers={"Y": ["2"]}, body_replacements=[NetworkBodyTransform("a", "b")], set_body="é"
            )
        )

    network = intercept(
        client,
        NetworkHookRule(action="block", hosts=["x"]),
        NetworkHookRule(phase="before", hook=before, timeout_ms=1500),
        NetworkHookRule(phase="after", hook=after),
    )
    path = Path(network["interception"]["callback_socket"])
    assert path.name == "hook.sock" and path.parent.name.startswith("matchlock-network-hook-")
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    ids = [rule.get("callback_id") for rule in network["interception"]["rules"]]
    assert ids == [None, "network_hook_2", "network_hook_3"]

    asked = {
        "callback_id": "network_hook_2",
        "phase": "before",
        "host": "h",
        "method": "GET",
        "path": "/p",
        "query": {"q": 1},
        "request_headers": {"A": ["1"], "B": "2"},
        "is_sse": True,
    }
    answer = ask(client, **asked)
    assert answer == {"action": "mutate", "request": {"headers": {"X": ["1"]}, "query": {}, "path": "/new"}}
    assert seen[0] == NetworkHookRequest(
        "before", "h", "GET", "/p", {"q": "1"}, {"A": ["1"], "B": ["2"]}, 0, None, True
    )
    assert ask(client, callback_id="network_hook_3", phase="after", status_code=404) == {}
    assert ask(client, callback_id="network_hook_3", phase="after", status_code=200) == {
        "action": "allow",
        "response": {
            "headers": {"Y": ["2"]},
            "body_replacements": [{"find": "a", "replace": "b"}],
            "set_body_base64": "w6k=",
        },
    }
    assert ask(client, callback_id="x") == {"error": "network hook callback not found"}
    assert ask(client, callback_id="network_hook_3", phase="before") == {"error": "network hook phase mismatch"}
    client.close()
    assert not path.parent.exists()
    eventually(lambda: "matchlock-network-hooks" not in threads())


def test_a_hook_that_fails_says_so(client: Client) -> None:
    def fails(_: NetworkHookRequest) -> None:
        raise RuntimeError("broken")

    def odd(_: NetworkHookRequest) -> Any:
        return {"action": "allow"}

    def odd_body(_: NetworkHookRequest) -> NetworkHookResult:
        body: Any = 7
        return NetworkHookResult(response=NetworkHookResponseMutation(set_body=body))

    intercept(client, *(NetworkHookRule(hook=hook) for hook in (fails, odd, odd_body)))
    assert ask(client, callback_id="network_hook_1") == {"error": "broken"}
    assert "expected NetworkHookResult or None" in ask(client, callback_id="network_hook_2")["error"]
    assert "set_body type" in ask(client, callback_id="network_hook_3")["error"]


def test_the_callback_socket_takes_anything(client: Client) -> None:
    path = intercept(client, NetworkHookRule(hook=lambda _: None))["interception"]["callback_socket"]
    for line in (b"", b"\n", b"[]\n", b"\xff\n", b"[" * 100_000 + b"\n", b"no end of line"):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(path)
            connection.sendall(line)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(65536)
            assert answer == b"" if not line else "error" in json.loads(answer)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(path)
        assert ask(client, callback_id="network_hook_1") == {}


def test_the_socket_goes_with_its_sandbox(client: Client) -> None:
    first = Path(intercept(client, NetworkHookRule(hook=lambda _: None))["interception"]["callback_socket"])
    second = Path(intercept(client, NetworkHookRule(hook=lambda _: None))["interception"]["callback_socket"])
    assert not first.parent.exists() and second.exists()
    options = Sandbox("missing").with_network_interception(
        NetworkInterceptionConfig([NetworkHookRule(hook=lambda _: None)])
    )
    with pytest.raises(RPCError):
        client.launch(options)
    assert not second.parent.exists()
    third = Path(requests(client, "create")[-1]["params"]["network"]["interception"]["callback_socket"])
    assert not third.parent.exists()
    fourth = Path(intercept(client, NetworkHookRule(hook=lambda _: None))["interception"]["callback_socket"])
    with pytest.raises(MatchlockError):
        client.exec("die")
    eventually(lambda: not fourth.parent.exists())


def test_a_callback_may_not_have_an_action(client: Client) -> None:
    with pytest.raises(MatchlockError, match="invalid network hook 'n': callback hooks cannot set action='block'"):
        intercept(client, NetworkHookRule(name="n", action="block", hook=lambda _: None))


def test_hooks_are_gone_with_the_next_sandbox(client: Client) -> None:
    with_rules(client, VFSHookRule(action_hook=lambda _: "block"))
    with pytest.raises(MatchlockError):
        client.write_file("/a", "")
    client.create(CreateOptions(image="i7"))
    client.write_file("/a", "")
