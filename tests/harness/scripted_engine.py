"""A server that behaves as its first argument says: for what a real engine does too rarely to wait for."""

import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

behaviour, port = sys.argv[1], int(sys.argv[2])

if behaviour == "out-of-memory":
    sys.exit("ggml: failed to allocate buffer of size 8589934592")
if behaviour == "bad-flag":
    sys.exit("server: error: unrecognized arguments: --no-such-flag")
if behaviour == "bad-model":
    sys.exit("error: failed to load model weights.bin")
if behaviour == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if behaviour == "never-ready":
    time.sleep(600)
if behaviour == "grandchildren":
    child = [
        sys.executable,
        "-c",
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)",
    ]
    subprocess.Popen(child)
    subprocess.Popen(child, start_new_session=True)
    time.sleep(0.3)  # until they ignore SIGTERM


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self._answer({"status": "ok"})

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        if behaviour == "never-completes":
            time.sleep(600)
        if behaviour == "killed-by-a-prompt":
            os.kill(os.getpid(), signal.SIGKILL)
        if behaviour == "lacks-a-kernel":
            print("error: int4 is not supported on this processor", file=sys.stderr, flush=True)
        if behaviour in ("cannot-complete", "lacks-a-kernel"):
            self.send_error(500, "no")
            return
        self._answer({"choices": [{"text": "x"}]})
        if behaviour == "dies-after-start":
            print("fatal: illegal instruction", file=sys.stderr, flush=True)
            os._exit(3)

    def _answer(self, document):
        body = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, *_):
        pass


ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
