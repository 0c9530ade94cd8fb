"""`dsv3rt serve` as a process."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import urllib.request

from serve_cases import ENDLESS

SERVE = [sys.executable, "-m", "dsv3rt", "serve", "--compile", "off"]


def test_it_says_where_it_is_answers_and_ends_with_ctrl_c() -> None:
    process = subprocess.Popen(
        [*SERVE, "--port", "0", "--json", "--alias", "little", "--temp", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        assert process.stdout is not None
        facts = json.loads(process.stdout.readline())
        assert facts["model"] == "little"
        body = json.dumps({"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 5}).encode()
        with urllib.request.urlopen(f"{facts['url']}/v1/chat/completions", body) as response:
            assert json.load(response)["usage"]["completion_tokens"] == 5
        body = json.dumps({**ENDLESS, "stream": True}).encode()
        with urllib.request.urlopen(f"{facts['url']}/v1/completions", body) as response:
            assert response.readline().startswith(b"data: ")
            process.send_signal(signal.SIGINT)
            assert b"the server is stopping" in response.read(), "who is in the middle of an answer is told"
        _, words = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130
    assert facts["url"] in words and "Traceback" not in words


def test_a_port_in_use_is_one_line_before_anything_is_loaded() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = subprocess.run([*SERVE, "--port", port], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and done.stdout == ""
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr and done.stderr.count("\n") == 1
