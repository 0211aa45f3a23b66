"""A stand-in for `text-generation-launcher`: its arguments and refusals, its API as published, and no model.

A word is a token, and every token that it makes is the next word of TEXT. Runs where TGI itself cannot.
"""

import json
import os
import re
import sys
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

VERSION = "3.3.6"
KNOWN = json.loads((Path(__file__).parent / "data" / "tgi-3.3.6-flags.json").read_text("utf-8"))
TEXT = (" the", " stand", "-in", " says", " what", " it", " was", " made", " to", " say", ",", " again")
TOKEN_S = 0.002


class Step(NamedTuple):
    token: dict[str, Any]
    index: int
    last: bool
    text: str
    usage: dict[str, int]
    details: dict[str, Any]


def fail(message, code=2):
    print(message, file=sys.stderr, flush=True)
    sys.exit(code)


def arguments(argv):
    """As clap reads them: flags over variables over defaults. Ends with its words where it would."""
    if argv == ["--version"]:
        print(f"text-generation-launcher {VERSION}")
        sys.exit()
    given = {
        flag: os.environ.get(flag[2:].replace("-", "_").upper(), about["default"]) for flag, about in KNOWN.items()
    }
    words = iter(argv)
    for flag in words:
        if flag not in KNOWN:
            fail(f"error: unexpected argument '{flag}' found\n\nFor more information, try '--help'.")
        given[flag] = next(words, None) if KNOWN[flag]["value"] else "true"
    for flag, value in given.items():
        choices = KNOWN[flag]["choices"]
        if value is not None and choices and value not in choices:
            fail(f"error: invalid value '{value}' for '{flag}'\n  [possible values: {', '.join(choices)}]")
    return given


def numbers(given):
    longest, prompt = int(given["--max-total-tokens"]), int(given["--max-input-tokens"])
    if prompt >= longest:
        fail(f'Error: ArgumentValidation("`max_input_tokens`({prompt}) must be < `max_total_tokens`({longest})")', 1)
    return longest, prompt


def tokens_of(text):
    return [(zlib.crc32(m[0].encode()) % 50_000, m[0], *m.span()) for m in re.finditer(r"\s*\S+", text)]


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, given):
        self.model = given["--model-id"]
        self.longest, self.longest_prompt = numbers(given)
        self.most = int(given["--max-concurrent-requests"])
        self.lock, self.running = threading.Lock(), 0
        self.counts = {"request_count": 0, "request_success": 0, "request_failure": 0, "generated": 0}
        super().__init__((given["--hostname"], int(given["--port"])), Handler)

    def count(self, **what):
        with self.lock:
            for name, by in what.items():
                self.counts[name] += by


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self):
        info = {
            "model_id": self.server.model, "max_concurrent_requests": self.server.most, "max_best_of": 2,
            "max_stop_sequences": 4, "max_input_tokens": self.server.longest_prompt,
            "max_total_tokens": self.server.longest, "validation_workers": 2, "max_client_batch_size": 4,
            "router": "text-generation-router", "version": VERSION,
        }  # fmt: skip
        models = {"id": self.server.model, "object": "model", "created": 0, "owned_by": self.server.model}
        match self.path:
            case "/health":
                self.say(b"", "text/plain")
            case "/info":
                self.say(info)
            case "/v1/models":
                self.say({"object": "list", "data": [models]})
            case "/metrics":
                self.say(self.metrics().encode(), "text/plain")
            case _:
                self.say(b"", "text/plain", 404)

    def metrics(self):
        c = self.server.counts
        return (
            f"# TYPE tgi_request_count counter\ntgi_request_count {c['request_count']}\n\n"
            f"# TYPE tgi_request_success counter\ntgi_request_success {c['request_success']}\n\n"
            f'# TYPE tgi_request_failure counter\ntgi_request_failure{{err="validation"}} {c["request_failure"]}\n\n'
            f"# TYPE tgi_batch_current_size gauge\ntgi_batch_current_size {self.server.running}\n\n"
            "# TYPE tgi_queue_size gauge\ntgi_queue_size 0\n\n"
            "# TYPE tgi_request_generated_tokens histogram\n"
            f'tgi_request_generated_tokens_bucket{{le="+Inf"}} {c["request_success"]}\n'
            f"tgi_request_generated_tokens_sum {c['generated']}\n"
            f"tgi_request_generated_tokens_count {c['request_success']}\n"
        )

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not {"inputs", "prompt", "messages"} & asked.keys() or (self.path == "/tokenize" and "inputs" not in asked):
            self.say(b"Failed to deserialize the JSON body into the target type: missing field", "text/plain", 422)
            return None
        if self.path == "/tokenize":
            found = tokens_of(asked["inputs"])
            self.say([dict(zip(("id", "text", "start", "stop"), token, strict=True)) for token in found])
            return None
        p = asked.get("parameters") or {}
        openai = self.path.startswith("/v1/")
        if openai:
            said = asked.get("prompt") or "".join(m["content"] for m in asked["messages"])
            most, adapter, streams = asked.get("max_tokens"), asked.get("model"), asked.get("stream")
        else:
            said, most, adapter = asked["inputs"], p.get("max_new_tokens"), p.get("adapter_id")
            streams = asked.get("stream") or self.path == "/generate_stream"
        self.server.count(request_count=1)
        read = len(tokens_of(said))
        most = self.server.longest - read if most is None else most
        if adapter not in {None, "tgi"}:
            return self.refuse(422, f"adapter {adapter} is not loaded", "validation")
        if read + most > self.server.longest or read > self.server.longest_prompt:
            why = f"`inputs` tokens + `max_new_tokens` must be <= {self.server.longest}. Given: {read} and {most}"
            return self.refuse(422, f"Input validation error: {why}", "validation")
        with self.server.lock:
            if self.server.running >= self.server.most:
                return self.refuse(429, "Model is overloaded", "overloaded")
            self.server.running += 1
        try:
            counted = (asked.get("stream_options") or {}).get("include_usage")
            self.generate(read, list(islice(cycle(TEXT), most)), streams, p, counted)
            self.server.count(request_success=1, generated=most)
        finally:
            with self.server.lock:
                self.server.running -= 1

    def generate(self, read, words, streams, p, counted):
        tokens = [
            {"id": zlib.crc32(word.encode()) % 50_000, "text": word, "logprob": -0.5, "special": False}
            for word in words
        ]
        usage = {"prompt_tokens": read, "completion_tokens": len(words), "total_tokens": read + len(words)}
        details = {"finish_reason": "length", "generated_tokens": len(words), "seed": None}
        answer = {
            "/v1/completions": self.completion, "/v1/chat/completions": self.chat,
        }.get(self.path, self.own)  # fmt: skip
        if streams:
            self.begin_stream()
            for index, token in enumerate(tokens, 1):
                time.sleep(TOKEN_S)
                last = index == len(tokens)
                told = {**details, "input_length": read}
                self.event(answer(Step(token, index, last, "".join(words), usage, told)))
            if self.path == "/v1/chat/completions" and counted:
                self.event({**self.head("chat.completion.chunk"), "choices": [], "usage": usage})
            if self.path.startswith("/v1/"):
                self.event("[DONE]")
            self.wfile.write(b"0\r\n\r\n")
            return
        time.sleep(TOKEN_S * len(words))
        text = "".join(words)
        if self.path == "/v1/completions":
            choice = {"index": 0, "text": text, "finish_reason": "length", "logprobs": None}
            self.say({**self.head("text_completion"), "choices": [choice], "usage": usage})
        elif self.path == "/v1/chat/completions":
            message = {"role": "assistant", "content": text}
            choice = {"index": 0, "message": message, "finish_reason": "length", "logprobs": None}
            self.say({**self.head("chat.completion"), "choices": [choice], "usage": usage})
        else:
            found = {"generated_text": text}
            if p.get("details"):
                found["details"] = {**details, "prefill": [], "tokens": tokens}
            self.say([found] if self.path == "/" else found)

    def head(self, kind):
        return {
            "id": "",
            "object": kind,
            "created": 0,
            "model": self.server.model,
            "system_fingerprint": f"{VERSION}-native",
        }

    def completion(self, step):
        choice = {
            "index": 0,
            "text": step.token["text"],
            "finish_reason": "length" if step.last else "",
            "logprobs": None,
        }
        return {**self.head("text_completion"), "choices": [choice], **({"usage": step.usage} if step.last else {})}

    def chat(self, step):
        delta = {"role": "assistant", "content": step.token["text"]}
        choice = {"index": 0, "delta": delta, "finish_reason": "length" if step.last else None, "logprobs": None}
        return {**self.head("chat.completion.chunk"), "choices": [choice], "usage": None}

    def own(self, step):
        return {
            "index": step.index,
            "token": step.token,
            "generated_text": step.text if step.last else None,
            "details": step.details if step.last else None,
        }

    def refuse(self, status, error, error_type):
        self.server.count(request_failure=1)
        self.say({"error": error, "error_type": error_type}, status=status)

    def say(self, document, kind="application/json", status=200):
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def begin_stream(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def event(self, document):
        text = f"data:{document if isinstance(document, str) else json.dumps(document)}\n\n".encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(text), text))
        self.wfile.flush()

    def log_message(self, *_):
        pass


def main():
    given = arguments(sys.argv[1:])
    print(f"2026-01-01T00:00:00.000000Z  INFO text_generation_launcher: Args {{ model_id: {given['--model-id']!r} }}")
    if given["--model-id"].startswith("/") and not (Path(given["--model-id"]) / "config.json").exists():
        fail("2026-01-01T00:00:00.000000Z ERROR download: text_generation_launcher: Download encountered an error: ", 1)
    try:
        server = Server(given)
    except OSError as err:
        fail(f"2026-01-01T00:00:00.000000Z ERROR text_generation_router: WebServer error: {err}", 1)
    server.serve_forever()


main()
