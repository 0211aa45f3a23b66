"""Hypothesis without per-example time limits: a test that fails because the machine was busy tells nothing.

And a server over real HTTP whose answers follow a known law, so that the right result is analytic.
"""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import settings

from harness.engines.base import Endpoint

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


class LawfulServer(ThreadingHTTPServer):
    """``law(body) -> document | HTTP status``; what came is kept in order of arrival."""

    daemon_threads = True
    delay_s = 0.0

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.law = lambda _body: {}
        self.paths, self.bodies, self.headers_seen = [], [], []
        root = f"http://127.0.0.1:{self.server_address[1]}"
        self.endpoint = Endpoint(root_url=root, base_url=f"{root}/v1", served_model="law")

    def handle_error(self, *_):
        """A client that gave up is what some tests are about."""


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.paths.append(self.path)
        self.server.bodies.append(body)
        self.server.headers_seen.append(dict(self.headers))
        time.sleep(self.server.delay_s)
        answer = self.server.law(body)
        status, payload = (answer, b"out of slots") if isinstance(answer, int) else (200, json.dumps(answer).encode())
        self.send_response(status)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *_):
        pass


@pytest.fixture
def lawful_server():
    with LawfulServer() as lawful:
        threading.Thread(target=lawful.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield lawful
        lawful.shutdown()
