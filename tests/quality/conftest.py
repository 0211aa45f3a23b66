"""A completions server over real HTTP whose answers follow a known law, so that every score is analytic."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from harness.engines.base import Endpoint


class LawfulServer(ThreadingHTTPServer):
    """``answer(prompt) -> text | HTTP status``; requests and their headers are kept in order of arrival."""

    daemon_threads = True
    delay_s = 0.0

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = lambda _prompt: ""
        self.bodies = []
        self.headers_seen = []
        root = f"http://127.0.0.1:{self.server_address[1]}"
        self.endpoint = Endpoint(root_url=root, base_url=f"{root}/v1", served_model="law")

    def handle_error(self, *_):
        """A client that gave up is what some tests are about."""


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        self.server.headers_seen.append(dict(self.headers))
        time.sleep(self.server.delay_s)
        answer = self.server.answer(body["prompt"])
        status = answer if isinstance(answer, int) else 200
        payload = json.dumps({"choices": [{"text": answer}]}).encode() if status == 200 else b"out of slots"
        self.send_response(status)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with LawfulServer() as lawful:
        threading.Thread(target=lawful.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield lawful
        lawful.shutdown()


@pytest.fixture
def make_jsonl(tmp_path):
    """A task of ``n`` items, `question I` -> `answer I`; returns its path."""

    def make(n, name="mine"):
        path = tmp_path / f"{name}.jsonl"
        items = [
            {"id": f"q{i}", "prompt": f"question {i:04}", "answers": [f"answer {i}"], "max_tokens": 4} for i in range(n)
        ]
        path.write_text("".join(json.dumps(item) + "\n" for item in items))
        return str(path)

    return make
