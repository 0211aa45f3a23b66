"""An engine of the tests under the harness's real load: it streams as it is told, and counts what it does."""

import sys
from pathlib import Path

from harness.bench import session
from harness.engines.base import LaunchPlan, ResolvedModel
from harness.engines.vllm.adapter import Vllm
from harness.host import limits
from harness.subject import Subject
from scenarios.space import ServingConfig
from scenarios.spec import Scenario
from scenarios.words import Words, candidates

ENGINE = Path(__file__).with_name("streaming_engine.py")
RATE_RPS = 30.0
SCENARIO = Scenario.model_validate(
    {
        "name": "telling",
        "model": {"name": "m"},
        "objective": "meet",
        "workload": {
            "arrivals": {"rate": {"rps": RATE_RPS}},
            "prompt_tokens": {"mean": 8},
            "output_tokens": {"mean": 4},
        },
        "slo": {"ttft": {"target_ms": 400.0}},
        "budget": {"warmup_s": 0.5, "ramp_s": 1.0, "hold_s": 3, "holds": 1},
    }
)


class Telling(Vllm):
    name = "telling"

    def plan(self, spec, model, config, host):
        return LaunchPlan(
            config=config,
            argv=(sys.executable, "-S", str(ENGINE), "{port}", str(config.knobs["late_s"])),
            env={},
            base_url="http://127.0.0.1:{port}/v1",
            served_model="m",
            health_path="/health",
            expected_memory_bytes=None,
            memory_explained="",
        )


class Listener:
    def __init__(self):
        self.notes = []

    def begin(self, what, seconds): ...

    def live(self, counters): ...

    def note(self, line):
        self.notes.append(line)


def subject_of(root, *, engine=None, targets=(), observer=None):
    return Subject(
        scenario=SCENARIO,
        engine=engine or Telling(),
        engine_version="telling",
        model=ResolvedModel(SCENARIO.model, "m", reference_variant=""),
        host=limits(),
        root=root,
        observer=observer or Listener(),
        targets=targets,
        words=Words(candidates(), exact=True),
    )


def running(subject, late_s=0.0):
    """A session of the engine, which lets each request wait ``late_s`` before it counts it."""
    return session(subject, ServingConfig("telling", {"late_s": late_s}), subject.root / "engine")
