"""A stand-in for the matchlock program: it speaks the protocol and runs nothing.

The unit tests of the package talk to it, so what they show is the client's side only; the real program is met by the
suites in tests/sdk of the repository. Commands are orders to the stand-in:

    echo TEXT         writes TEXT          hex B B B     writes each B (hex) as a chunk of its own
    fail CODE TEXT    an RPC error         exit N        ends with N
    sleep S           takes S seconds      repeat N B    writes chunk B (hex) N times
    junk              lines without sense  events N      N file events first
    requests          what was received    callback J    asks the callback socket J
    ahead             the most input that ever waited, in Base64
    die [TEXT]        ends the process     mute          never answers
    result J          answers J            late          cancelled, and answered all the same
"""

from __future__ import annotations

import base64
import json
import os
import socket
import sys
import threading
import time
from typing import Any

Object = dict[str, Any]

writing = threading.Lock()
received: list[Object] = []
cancelled: dict[int, threading.Event] = {}
inputs: dict[int, list[Object]] = {}
files: dict[str, bytes] = {}
created: Object = {}
state = {"ahead": 0}
arrived = threading.Condition()


def put(message: bytes) -> None:
    with writing:
        view = memoryview(message + b"\n")
        while view:
            view = view[os.write(1, view) :]


def say(message: Object) -> None:
    put(json.dumps({"jsonrpc": "2.0", **message}).encode())


def notify(method: str, **params: Any) -> None:
    say({"method": method, "params": params})


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


class Failure(Exception):
    def __init__(self, code: int, message: str) -> None:
        self.code, self.message = code, message


def run(id: int, command: str, out: Any) -> int:
    """Carries an order out; gives the exit code."""
    word, _, rest = command.partition(" ")
    if word == "echo":
        out(rest.encode())
    elif word == "hex":
        for chunk in rest.split():
            out(bytes.fromhex(chunk))
    elif word == "repeat":
        count, chunk = rest.split()
        for _ in range(int(count)):
            out(bytes.fromhex(chunk))
    elif word == "exit":
        return int(rest)
    elif word == "fail":
        code, _, text = rest.partition(" ")
        raise Failure(int(code), text)
    elif word == "sleep":
        if cancelled[id].wait(float(rest)):
            raise Failure(-32003, "cancelled")
    elif word == "mute":
        time.sleep(1000)
    elif word == "late":
        cancelled[id].wait()
    elif word == "die":
        if rest:
            print(f"something\n{rest}\n", file=sys.stderr, flush=True)
        os._exit(3)
    elif word == "junk":
        junk(id)
    elif word == "events":
        for number in range(int(rest)):
            file_event(f"/workspace/{number}")
    elif word == "requests":
        out(json.dumps(received).encode())
    elif word == "ahead":
        out(str(state["ahead"]).encode())
    elif word == "callback":
        out(ask_callback(rest))
    return 0


def junk(id: int) -> None:
    for line in (
        b"",
        b"not json",
        b"\xff\xfe\x00",
        b"[1,2]",
        b"7",
        b"null",
        b"[" * 100_000,
        b'{"id":[1],"result":{}}',
        b'{"id":{"a":1},"result":{}}',
        b'{"id":true,"result":{}}',
        b'{"id":99999,"result":{}}',
        b'{"method":"event","params":null}',
        b'{"method":"event","params":{"file":{"op":"write","size":"many"}}}',
        b'{"method":7,"params":{}}',
        b'{"method":"exec_stream.stdout","params":[]}',
        b'{"method":"exec_stream.stdout","params":{"id":"x"}}',
        b'{"method":"something.new","params":{"id":%d}}' % id,
    ):
        put(line)


def file_event(path: str) -> None:
    event = {"op": "write", "path": path, "size": 3, "mode": 420}
    notify("event", type="file", timestamp=1, file=event)


def ask_callback(line: str) -> bytes:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(created["network"]["interception"]["callback_socket"])
        connection.sendall(line.encode() + b"\n")
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
        return answer


def command_of(params: Object) -> str:
    return str(params["command"]) if "command" in params else " ".join(params["argv"])


def exec_(id: int, params: Object) -> Object:
    if params.get("detached"):
        return {"process_id": 5}
    if command_of(params).startswith("result "):
        return dict(json.loads(command_of(params).partition(" ")[2]))
    output: list[bytes] = []
    code = run(id, command_of(params), output.append)
    return {"exit_code": code, "stdout": b64(b"".join(output)), "stderr": b64(b"err"), "duration_ms": 12}


def exec_stream(id: int, params: Object) -> Object:
    command = command_of(params)
    stream = "exec_stream.stdout"
    if command.startswith("2>"):
        stream, command = "exec_stream.stderr", command[2:]
    code = run(id, command, lambda chunk: notify(stream, id=id, data=b64(chunk)))
    return {"exit_code": code, "duration_ms": 34}


def interactive(id: int, method: str, params: Object) -> Object:
    """Gives back what it is sent, and says how it was resized; ends with its input, or as told."""
    notify(f"{method}.ready", id=id)
    command = command_of(params)
    if command != "cat":
        code = run(id, command, lambda chunk: notify(f"{method}.stdout", id=id, data=b64(chunk)))
        return {"exit_code": code, "duration_ms": 1}
    count = 0
    acks = method == "exec_pipe" and params.get("stdin_ack")
    while True:
        with arrived:
            arrived.wait_for(lambda: inputs[id] or cancelled[id].is_set())
            if not inputs[id]:
                raise Failure(-32003, "cancelled")
            message = inputs[id].pop(0)
        if message["method"].endswith(".stdin_eof"):
            return {"exit_code": 0, "duration_ms": 1}
        if message["method"].endswith(".resize"):
            size = f"{message['params']['rows']}x{message['params']['cols']}\n".encode()
            notify(f"{method}.stdout", id=id, data=b64(size))
            continue
        data = base64.b64decode(message["params"]["data"])
        count += len(data)
        if acks:
            with arrived:
                state["ahead"] = max(state["ahead"], sum(len(one["params"].get("data", "")) for one in inputs[id]))
            notify("exec_pipe.stdin_ack", id=id, bytes=count)
        notify(f"{method}.stdout", id=id, data=b64(data))
        if method == "exec_pipe":
            notify("exec_pipe.stderr", id=id, data=b64(f"{count}\n".encode()))


def write_file(params: Object) -> Object:
    content = base64.b64decode(params["content"])
    path = params["path"]
    if path == "/refused":
        raise Failure(-32002, "no")
    if "offset" in params:
        old = files.get(path, b"")
        files[path] = old[: params["offset"]] + content + old[params["offset"] + len(content) :]
    else:
        files[path] = content
    file_event(path)
    return {}


def read_file(params: Object) -> Object:
    if params["path"] not in files:
        raise Failure(-32002, "open: no such file or directory")
    content = files[params["path"]]
    start = params.get("offset", 0)
    end = start + params["length"] if "length" in params else None
    return {"content": b64(content[start:end])}


def info(name: str) -> Object:
    return {
        "name": name,
        "size": len(files.get("/" + name, b"")),
        "mode": 0o644,
        "mod_time": "2024-05-06T07:08:09.123456789Z",
        "is_dir": False,
        "uid": 1,
        "gid": 2,
        "target": "t",
    }


def watch(id: int) -> Object:
    notify("watch.ready", id=id)
    for kind in ("created", "modified", "removed", "unheard of"):
        notify("watch.change", id=id, kind=kind, path="/w/a")
    cancelled[id].wait()
    raise Failure(-32003, "cancelled")


def log_stream(id: int) -> Object:
    notify("log_stream.data", id=id, data=b64("log é".encode()[:-1]))
    notify("log_stream.data", id=id, data=b64("é".encode()[1:]))
    cancelled[id].wait()
    raise Failure(-32003, "cancelled")


def create(params: Object) -> Object:
    created.clear()
    created.update(params)
    if params["image"] == "missing":
        raise Failure(-32000, "no image")
    if params["image"] == "nothing":
        return {}
    return {"id": "vm-0000000" + params["image"][-1]}


def mount_remove(params: Object) -> Object:
    if params["guest_path"] == "/busy" and not params["force"]:
        raise Failure(-32000, "what is mounted at /busy is in use")
    return {}


def port_forward(params: Object) -> Object:
    if params["forwards"][0]["remote_port"] == 666:
        return {"bindings": [{"address": "", "local_port": 1, "remote_port": 1}]}
    return {
        "bindings": [
            {"address": address, **forward} for forward in params["forwards"] for address in params["addresses"]
        ]
    }


def allow_list(params: Object, changed: str) -> Object:
    if params["hosts"] == ["odd"]:
        return {changed: ["odd"], "allowed_hosts": [1]}
    # Servers of other releases leave empty lists out.
    return {changed: params["hosts"], "allowed_hosts": None if changed == "removed" else ["a", *params["hosts"]]}


def answer(id: int, method: str, params: Object) -> Object:
    if method == "hello" and os.environ.get("FAKE_SILENT"):
        cancelled[id].wait(10)
        raise Failure(-32003, "cancelled")
    if method == "hello" and not os.environ.get("FAKE_OLD"):
        return {"version": "0.0.0", "protocol": 1, "methods": []}
    simple: dict[str, Any] = {
        "create": lambda: create(params),
        "exec": lambda: exec_(id, params),
        "exec_stream": lambda: exec_stream(id, params),
        "exec_pipe": lambda: interactive(id, "exec_pipe", params),
        "exec_tty": lambda: interactive(id, "exec_tty", params),
        "write_file": lambda: write_file(params),
        "read_file": lambda: read_file(params),
        "list_files": lambda: {"files": [info("a"), {**info("d"), "is_dir": True, "mode": 0x800001ED}]},
        "stat": lambda: info("a"),
        "mkdir": lambda: {},
        "remove": lambda: {},
        "rename": lambda: {},
        "watch": lambda: watch(id),
        "log": lambda: {"content": b64(b"log\xff")},
        "log_stream": lambda: log_stream(id),
        "mount_add": lambda: {},
        "mount_remove": lambda: mount_remove(params),
        "mount_list": lambda: {
            "mounts": [
                {"guest_path": "/a", "type": "host_fs", "host_path": "/h", "readonly": True, "added": False},
                {"guest_path": "/b", "type": "memory", "readonly": False, "added": True, "failure": "gone"},
            ]
        },
        "port_forward": lambda: port_forward(params),
        "allow_list_add": lambda: allow_list(params, "added"),
        "allow_list_delete": lambda: allow_list(params, "removed"),
        "process_list": lambda: {
            "processes": [
                {"process_id": 4, "command": "a", "running": True},
                {"process_id": 5, "command": "b", "running": False, "exit_code": 9},
            ]
        },
        "process_wait": lambda: {"exit_code": 9},
        "process_signal": lambda: {},
        "process_kill": lambda: {},
        "process_output": lambda: {"output": b64(b"last \xff")},
    }
    if method not in simple:
        raise Failure(-32601, "Method not found")
    return dict(simple[method]())


def handle(request: Object) -> None:
    id, method, params = request["id"], request["method"], request.get("params", {})
    try:
        result = answer(id, method, params)
    except Failure as failure:
        say({"id": id, "error": {"code": failure.code, "message": failure.message}})
    else:
        say({"id": id, "result": result})


def serve() -> None:
    if os.environ.get("FAKE_DEAF"):
        time.sleep(1000)
    for line in sys.stdin.buffer:
        request = json.loads(line)
        received.append(request)
        method, params = request["method"], request.get("params", {})
        if method == "cancel":
            with arrived:
                cancelled.setdefault(params["id"], threading.Event()).set()
                arrived.notify_all()
            say({"id": request["id"], "result": {"cancelled": True}})
        elif method.startswith(("exec_pipe.", "exec_tty.")):
            with arrived:
                inputs.setdefault(params["id"], []).append(request)
                arrived.notify_all()
        elif method == "close":
            if not os.environ.get("FAKE_HANG"):
                say({"id": request["id"], "result": {}})
        else:
            cancelled.setdefault(request["id"], threading.Event())
            inputs.setdefault(request["id"], [])
            threading.Thread(target=handle, args=(request,), daemon=True).start()
    if trace := os.environ.get("FAKE_TRACE"):
        with open(trace, "w", encoding="utf-8") as file:
            json.dump(received, file)
    if os.environ.get("FAKE_HANG"):
        time.sleep(1000)
    os._exit(0)


def main(arguments: list[str]) -> int:
    if arguments == ["rpc"]:
        serve()
    if arguments[:1] == ["rm"]:
        if arguments[1] == "vm-0000000x":
            print("VM vm-0000000x not found", file=sys.stderr)
            return 1
        return 0
    if arguments[:2] == ["volume", "create"]:
        size = f"{float(arguments[4]):.1f} MB"
        print(json.dumps({"name": arguments[2], "size": size, "path": f"/v/{arguments[2]}.ext4"}))
        return 0
    if arguments[:2] == ["volume", "ls"]:
        print(os.environ.get("FAKE_VOLUMES", "[]"))
        return 0
    if arguments[:2] == ["volume", "rm"]:
        return 0
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
