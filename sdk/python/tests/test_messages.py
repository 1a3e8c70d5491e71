"""Lines: the requests that are sent, and the messages that are understood."""

from __future__ import annotations

import json
import pickle
import random

import pytest

from matchlock import RPCError
from matchlock.messages import Notification, Response, decode, encode


def test_a_request_is_one_ascii_line() -> None:
    line = encode("exec", 7, {"command": "echo \n\u2028é"})
    assert line.endswith(b"\n") and line.count(b"\n") == 1 and line.isascii()
    assert json.loads(line) == {"jsonrpc": "2.0", "method": "exec", "id": 7, "params": {"command": "echo \n\u2028é"}}


def test_empty_parameters_are_left_out() -> None:
    assert "params" not in json.loads(encode("log", 1, None))
    assert "params" not in json.loads(encode("log", 1, {}))


def test_a_result_an_error_and_a_notification() -> None:
    assert decode(b'{"id":3,"result":{"a":1}}') == Response(3, {"a": 1}, None)
    response = decode(b'{"id":3,"error":{"code":-32001,"message":"no"}}')
    assert isinstance(response, Response) and response.error is not None
    assert (response.error.code, response.error.message) == (-32001, "no")
    line = b'{"method":"event","id":null,"params":{"id":4}}'
    assert decode(line) == Notification("event", {"id": 4}, len(line))


@pytest.mark.parametrize("error", ["{}", "[]", '"text"', '{"code":"x","message":7}'])
def test_an_error_that_lacks_its_members_is_still_an_error(error: str) -> None:
    response = decode(f'{{"id":1,"error":{error}}}'.encode())
    assert isinstance(response, Response) and response.error is not None
    assert response.error.code == RPCError.INTERNAL_ERROR


def test_no_line_raises() -> None:
    rng = random.Random(1)
    seeds = [b'{"id":3,"result":{"a":1}}', b'{"method":"event","params":{"id":4,"data":"aGk="}}', b"[" * 9999]
    for _ in range(20_000):
        line = bytearray(rng.choice(seeds))
        for _ in range(rng.randrange(4)):
            line[rng.randrange(len(line))] = rng.randrange(256)
        decode(bytes(line))


def test_an_rpc_error_says_what_it_is() -> None:
    error = RPCError(-32002, "no such file")
    assert str(error) == "[-32002] no such file"
    assert (error.is_vm_error(), error.is_exec_error(), error.is_file_error()) == (False, False, True)
    assert RPCError(-32000, "").is_vm_error() and RPCError(-32001, "").is_exec_error()
    assert RPCError(-32003, "").is_cancelled_error()
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.code, copy.message) == (error.code, error.message)
