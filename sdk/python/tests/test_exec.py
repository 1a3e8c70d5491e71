"""Commands: results, streams, input, timeouts, and everything a server or a callback can do wrong meanwhile."""

from __future__ import annotations

import io
import json
import math
import os
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from helpers import eventually, params, requests, threads

from matchlock import Client, Config, ExecResult, ExecStreamResult, MatchlockError, RPCError


def test_exec_gives_what_was_written(client: Client) -> None:
    result = client.exec("echo hi é")
    assert result == ExecResult(exit_code=0, stdout="hi é", stderr="err", duration_ms=12)
    assert result.stdout_bytes == "hi é".encode()
    assert params(client, "exec") == {"command": "requests"}
    assert client.exec("exit 7").exit_code == 7


def test_output_that_is_no_text_is_replaced_in_the_text_and_kept_in_the_bytes(client: Client) -> None:
    result = client.exec("hex ff41")
    assert (result.stdout, result.stdout_bytes) == ("\ufffdA", b"\xffA")


def test_what_goes_with_a_command(client: Client) -> None:
    client.exec(["echo", "a b"], "/tmp", user="u:g", env={"A": "1"})
    sent = requests(client, "exec")[0]["params"]
    assert sent == {"argv": ["echo", "a b"], "working_dir": "/tmp", "user": "u:g", "env": {"A": "1"}}


def test_an_old_program_is_not_asked_for_what_it_would_ignore(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_OLD", "1")
    with Client(Config(program)) as client:
        assert client.exec("echo x").stdout == "x"
        for call in (
            lambda: client.exec(["true"]),
            lambda: client.exec("true", env={"A": "1"}),
            lambda: client.exec_detached("true"),
            lambda: client.upload("/a", io.BytesIO(b"x")),
            lambda: client.write_file("/a", b"x" * (5 << 20)),
            lambda: client.stat("/a"),
        ):
            with pytest.raises(MatchlockError, match="too old"):
                call()
        assert requests(client, "write_file") == []


def test_an_rpc_error_is_raised(client: Client) -> None:
    with pytest.raises(RPCError, match=r"^\[-32001\] it broke$") as caught:
        client.exec("fail -32001 it broke")
    assert caught.value.is_exec_error()


@pytest.mark.parametrize(
    "answer", ["{}", '{"exit_code":0}', '{"exit_code":0,"duration_ms":1,"stdout":7,"stderr":""}', '{"exit_code":"0"}']
)
def test_an_answer_that_lacks_something_is_an_error_of_this_package(client: Client, answer: str) -> None:
    with pytest.raises(MatchlockError, match="invalid"):
        client.exec(f"result {answer}")


def test_text_streams_get_whole_characters(client: Client) -> None:
    out, err = io.StringIO(), io.StringIO()
    result = client.exec_stream("hex c3 a9 e2 82 ac ff f0 9f", stdout=out, stderr=err)
    assert result == ExecStreamResult(exit_code=0, duration_ms=34)
    assert (out.getvalue(), err.getvalue()) == ("é€\ufffd\ufffd", "")
    client.exec_stream("2>echo x", stdout=out, stderr=err)
    assert err.getvalue() == "x"


def test_binary_streams_get_bytes(client: Client) -> None:
    data = io.BytesIO()
    client.exec_stream("hex c3 ff 00", stdout=data)
    assert data.getvalue() == b"\xc3\xff\x00"
    with tempfile.NamedTemporaryFile() as named, tempfile.SpooledTemporaryFile() as spooled:
        client.exec_stream("hex ff", stdout=named)
        client.exec_stream("hex ff", stdout=spooled)
        for file in (named, spooled):
            file.seek(0)
            assert file.read() == b"\xff"
    with tempfile.TemporaryFile(buffering=0) as raw:
        client.exec_stream("hex ff 00", stdout=raw)
        raw.seek(0)
        assert raw.read() == b"\xff\x00"


def test_a_stream_without_a_mode_gets_text_and_needs_no_flush(client: Client) -> None:
    class Plain:
        seen = ""

        def write(self, text: str) -> None:
            self.seen += text

    plain: Any = Plain()
    client.exec_stream("hex c3 a9", stdout=plain)
    assert plain.seen == "é"


def test_a_stream_that_fails_fails_its_caller_and_nobody_else(client: Client) -> None:
    class Broken(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError("nobody reads")

    with pytest.raises(BrokenPipeError):
        client.exec_stream("repeat 1000 41", stdout=Broken())
    assert client.exec("echo on").stdout == "on"


def test_lines_without_sense_do_no_harm(client: Client) -> None:
    out = io.StringIO()
    assert client.exec_stream("junk", stdout=out).exit_code == 0
    assert client.exec("junk").exit_code == 0
    assert client.exec("echo on").stdout == "on"


def test_a_stream_that_blocks_holds_up_no_other_request(client: Client) -> None:
    entered, leave = threading.Event(), threading.Event()

    class Slow(io.StringIO):
        def write(self, text: str) -> int:
            entered.set()
            leave.wait(10)
            return len(text)

    with ThreadPoolExecutor() as pool:
        slow = pool.submit(client.exec_stream, "repeat 100 41", Slow())
        assert entered.wait(10)
        assert client.exec("echo other", timeout=5).stdout == "other"
        leave.set()
        assert slow.result().exit_code == 0


def test_output_that_nobody_takes_waits_in_the_server(client: Client) -> None:
    class Slow(io.RawIOBase):
        taken = 0

        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            self.taken += len(data)
            return len(data)

    slow: Any = Slow()
    chunk = "41" * 50_000
    client.exec_stream(f"repeat 400 {chunk}", stdout=slow)
    assert slow.taken == 400 * 50_000


def test_a_timeout_cancels(client: Client) -> None:
    start = time.monotonic()
    with pytest.raises(TimeoutError, match=r"^request exec \(id=\d+\) timed out after 0.05s$"):
        client.exec("sleep 30", timeout=0.05)
    assert time.monotonic() - start < 5
    target = requests(client, "exec")[0]["id"]
    assert params(client, "cancel") == {"id": target}
    with pytest.raises(TimeoutError):
        client.exec_stream("sleep 30", timeout=0.05)
    with pytest.raises(TimeoutError):
        client.exec_pipe("sleep 30", timeout=0.05)
    with pytest.raises(TimeoutError):
        client.exec_interactive("sleep 30", timeout=0.05)
    assert len(requests(client, "cancel")) == 4


def test_a_timeout_without_end(client: Client) -> None:
    for timeout in (math.inf, 1e12, 10**400):
        assert client.exec("echo x", timeout=timeout).stdout == "x"
        client.exec_pipe("cat", io.StringIO("x"), timeout=timeout)
        assert client.exec_detached("x").wait(timeout) == 9
        with client.watch("/w", timeout=timeout) as watch:
            assert watch.next(timeout).kind == "created"


@pytest.mark.parametrize(("timeout", "error"), [(math.nan, ValueError), ("1", TypeError)])
def test_a_timeout_that_is_no_time_is_refused_before_anything_is_sent(
    client: Client, timeout: Any, error: type[Exception]
) -> None:
    process, watch = client.exec_detached("x"), client.watch("/w")
    before = len(json.loads(client.exec("requests").stdout))
    for call in (
        lambda: client.exec("x", timeout=timeout),
        lambda: client.exec_stream("x", timeout=timeout),
        lambda: client.exec_pipe("x", timeout=timeout),
        lambda: client.exec_interactive("x", timeout=timeout),
        lambda: client.exec_detached("x", timeout=timeout),
        lambda: client.processes(timeout),
        lambda: client.write_file("/a", "x", timeout=timeout),
        lambda: client.write_file("/a", b"x" * (5 << 20), timeout=timeout),
        lambda: client.read_file("/a", timeout),
        lambda: client.list_files("/a", timeout),
        lambda: client.upload("/a", io.BytesIO(), timeout=timeout),
        lambda: client.download("/a", io.BytesIO(), timeout=timeout),
        lambda: client.stat("/a", timeout=timeout),
        lambda: client.mkdir("/a", timeout=timeout),
        lambda: client.remove_file("/a", timeout=timeout),
        lambda: client.rename("/a", "/b", timeout=timeout),
        lambda: client.watch("/a", timeout=timeout),
        lambda: client.log(timeout),
        lambda: client.log_stream(timeout=timeout),
        lambda: process.wait(timeout),
        lambda: watch.next(timeout),
    ):
        with pytest.raises(error):
            call()
    # The command that asks is the only one since.
    assert len(json.loads(client.exec("requests").stdout)) == before + 1


def test_a_timeout_holds_for_what_is_asked_first(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_SILENT", "1")
    with Client(Config(program)) as client:
        for call in (
            lambda: client.exec(["x"], timeout=0.05),
            lambda: client.exec_pipe("cat", io.StringIO(), timeout=0.05),
            lambda: client.exec_detached("x", timeout=0.05),
            lambda: client.upload("/a", io.BytesIO(), timeout=0.05),
            lambda: client.stat("/a", timeout=0.05),
            lambda: client.watch("/a", timeout=0.05),
        ):
            with pytest.raises(TimeoutError, match=r"^request hello \(id=\d+\) timed out after 0.05s$"):
                call()


@pytest.mark.parametrize("command", [b"ls", bytearray(b"ls"), memoryview(b"ls"), [b"ls"], ["ls", b"x"], 5, None])
def test_a_command_that_is_no_text_is_refused_before_anything_is_sent(client: Client, command: Any) -> None:
    for call in (client.exec, client.exec_stream, client.exec_pipe, client.exec_interactive, client.exec_detached):
        with pytest.raises(TypeError):
            call(command)
    assert [request["method"] for request in json.loads(client.exec("requests").stdout)] == ["create", "exec"]


def test_a_late_answer_to_a_cancelled_request_is_dropped(client: Client) -> None:
    with pytest.raises(TimeoutError):
        client.exec("late", timeout=0.05)
    assert client.exec("echo on").stdout == "on"


def test_an_interrupt_cancels(client: Client) -> None:
    class Interrupting(io.StringIO):
        def write(self, _: str) -> int:
            raise KeyboardInterrupt

    read, write = os.pipe()
    with os.fdopen(read, "rb") as stdin:
        os.write(write, b"x")
        with pytest.raises(KeyboardInterrupt):
            client.exec_pipe("cat", stdin=stdin, stdout=Interrupting())
        os.close(write)
    assert len(requests(client, "cancel")) == 1


def test_a_server_that_dies_fails_all_that_wait_for_it(client: Client) -> None:
    with ThreadPoolExecutor(16) as pool:
        waiting = [pool.submit(client.exec, "sleep 30") for _ in range(10)]
        eventually(
            lambda: [request["params"]["command"] for request in requests(client, "exec")].count("sleep 30") == 10
        )
        with pytest.raises(MatchlockError, match="^Matchlock process closed unexpectedly$"):
            client.exec("die")
        for future in waiting:
            with pytest.raises(MatchlockError, match="closed unexpectedly"):
                future.result()
    with pytest.raises(MatchlockError, match="^Matchlock process not running$"):
        client.exec("echo x")
    eventually(lambda: "matchlock-reader" not in threads())


def test_the_last_words_of_a_server_are_passed_on(client: Client) -> None:
    text = "^Matchlock process closed unexpectedly: sudo: a password is required$"
    with pytest.raises(MatchlockError, match=text):
        client.exec("die sudo: a password is required")


def test_many_threads(client: Client) -> None:
    def one(number: int) -> str:
        if number % 10 == 0:
            return client.exec(f"sleep {number / 1000}").stdout or str(number)
        if number % 3 == 0:
            out = io.StringIO()
            client.exec_pipe("cat", stdin=io.StringIO(str(number) * 1000), stdout=out)
            return str(number) if out.getvalue() == str(number) * 1000 else ""
        return client.exec(f"echo {number}").stdout

    with ThreadPoolExecutor(50) as pool:
        assert list(pool.map(one, range(200))) == [str(number) for number in range(200)]
    ids = [request["id"] for request in requests(client, "exec")]
    assert len(set(ids)) == len(ids)


def test_a_pipe_gets_its_input_to_the_end(client: Client) -> None:
    out, err = io.StringIO(), io.StringIO()
    result = client.exec_pipe("cat", io.StringIO("héllo"), out, err, "/tmp", None, "user")
    assert (result.exit_code, result.duration_ms) == (0, 1)
    assert (out.getvalue(), err.getvalue()) == ("héllo", "6\n")
    sent = params(client, "exec_pipe")
    assert sent == {"command": "cat", "working_dir": "/tmp", "user": "user", "stdin_ack": True}
    data = io.BytesIO()
    client.exec_pipe("cat", io.BytesIO(bytes(range(256)) * 1000), data)
    assert data.getvalue() == bytes(range(256)) * 1000
    assert client.exec_pipe("cat").exit_code == 0


def test_input_is_never_far_ahead_of_a_command_that_takes_it_slowly(client: Client) -> None:
    class Slow(io.BytesIO):
        def write(self, data: Any) -> int:
            if self.tell() < 1 << 20:
                time.sleep(0.005)
            return super().write(data)

    out = Slow()
    content = os.urandom(1 << 20) * 20
    client.exec_pipe("cat", io.BytesIO(content), out)
    assert out.getvalue() == content
    assert int(client.exec("ahead").stdout) <= (1 << 20) * 3 // 2


def test_an_old_program_tells_nothing_of_its_input(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_OLD", "1")
    with Client(Config(program)) as client:
        out = io.BytesIO()
        client.exec_pipe("cat", io.BytesIO(bytes(5 << 20)), out)
        assert out.getvalue() == bytes(5 << 20)
        assert params(client, "exec_pipe") == {"command": "cat"}


def test_input_from_a_pipe_comes_as_it_is_written(client: Client) -> None:
    read, write = os.pipe()
    came = threading.Event()

    class Out(io.BytesIO):
        def write(self, data: Any) -> int:
            came.set()
            return super().write(data)

    with os.fdopen(read, "rb") as stdin, os.fdopen(write, "wb", buffering=0) as source:
        out = Out()
        with ThreadPoolExecutor() as pool:
            running = pool.submit(client.exec_pipe, "cat", stdin, out)
            source.write(b"one")
            assert came.wait(10)
            source.write(b"two")
            source.close()
            assert running.result().exit_code == 0
        assert out.getvalue() == b"onetwo"


def test_input_that_is_not_there_yet_is_waited_for(client: Client) -> None:
    read, write = os.pipe()
    os.set_blocking(read, False)
    with os.fdopen(read, "rb", buffering=0) as stdin:

        def later() -> None:
            os.write(write, b"late")
            os.close(write)

        threading.Timer(0.05, later).start()
        out = io.BytesIO()
        client.exec_pipe("cat", stdin, out)
        assert out.getvalue() == b"late"


def test_input_that_cannot_be_read_is_told(client: Client) -> None:
    class Broken(io.StringIO):
        def read(self, _: int | None = None) -> str:
            raise OSError("disk on fire")

    with pytest.raises(OSError, match="disk on fire"):
        client.exec_pipe("cat", stdin=Broken())


def test_a_command_may_end_before_its_input(client: Client) -> None:
    read, write = os.pipe()
    with os.fdopen(read, "rb") as stdin:
        assert client.exec_pipe("exit 3", stdin=stdin).exit_code == 3
        os.close(write)


def test_a_terminal_has_a_size_that_changes(client: Client) -> None:
    read, write = os.pipe()
    out = io.StringIO()

    def sizes() -> Any:
        yield (30, 100)
        yield "nonsense"
        yield [31, 101]
        os.close(write)

    with os.fdopen(read, "rb") as stdin:
        result = client.exec_interactive("cat", stdin, out, "/w", 0, -1, sizes(), user="u")
    assert result.exit_code == 0
    assert out.getvalue() == "30x100\n31x101\n"
    sent = params(client, "exec_tty")
    assert sent == {"command": "cat", "rows": 24, "cols": 80, "working_dir": "/w", "user": "u"}


def test_detached_commands(client: Client) -> None:
    process = client.exec_detached(["serve"], "/srv", env={"A": "b"})
    assert process.id == 5
    sent = requests(client, "exec")[0]["params"]
    assert sent == {"argv": ["serve"], "working_dir": "/srv", "env": {"A": "b"}, "detached": True}
    process.kill()
    assert params(client, "process_kill") == {"process_id": 5}
    assert process.output() == b"last \xff"
    process.send_signal(9)
    assert params(client, "process_signal") == {"process_id": 5, "signal": 9}
    process.terminate()
    assert params(client, "process_signal") == {"process_id": 5, "signal": 15}
    assert process.poll() == 9
    assert process.wait() == 9
    assert client.exec_detached("x").wait(1) == 9
    first, second = client.processes()
    assert (first.id, first.command, first.running, first.exit_code) == (4, "a", True, None)
    assert (second.running, second.exit_code) == (False, 9)
