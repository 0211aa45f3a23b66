"""Deployments without a study: a tiny real model file, the engine's own space, and words that break quoting."""

import shlex

import gguf
import numpy as np

from harness.engines.base import HostLimits
from harness.measurement import EngineIdentity, SloVerdict, Verdict
from lifecycle.export.base import Canonical, Deployment
from tuners.results import Winner

ROOMY = HostLimits(64, 1 << 50)
HAZARDS = (
    "plain",
    "two words",
    "it's",
    'a "quoted" one',
    "100%",
    "%h %n %%",
    "$HOME",
    "$$",
    "$(NAME)",
    "$$(NAME)",
    "${NAME:-x}",
    "`id`",
    "back\\slash\\",
    "ünï-çødé",
    "日本語 🦙",
    "semi;colon",
    "hash # tag",
    "star*?[a]",
    "tilde ~",
    "a=b",
    ": colon: ",
    "- dash",
    "{brace}",
    "{{ template }}",
    "on",
    "null",
    "1e3",
    "0x10",
    "007",
    "&& true | false > /dev/null",
    "!bang",
    "'",
    '"',
    "\\",
    "trailing space ",
)


def winner_of(config, argv, env, *, engine, label, outcome="tuned"):
    verdict = Verdict(
        outcome="PASS",
        reasons=(),
        slo=tuple(
            SloVerdict(
                metric=metric,
                percentile=95,
                target_ms=target_ms,
                outcome="PASS",
                log_e_pass=9.0,
                log_e_fail=-9.0,
                n=500,
                misses=2,
                deflation=2.0,
                requests_to_decide=None,
            )
            for metric, target_ms in (("ttft", 800.0), ("tpot", 62.5), ("chat.e2e", 4000.0))
        ),
    )
    return Winner(
        outcome=outcome,
        reason="Trial 003 gives 1.42 times what the defaults give on held-out traffic (95.0% interval 1.3 to 1.5).",
        objective="goodput",
        trial=3,
        config=config.to_dict(),
        identity=EngineIdentity(
            engine=engine,
            version=f"{engine} 0.32.0",
            argv=tuple(argv),
            env=dict(env),
            model=label,
            model_digest="d" * 64,
            config_digest=config.digest,
        ),
        gain=None,
        score=3.1,
        default_score=2.2,
        default_config=config.to_dict(),
        score_unit="requests/s",
        finalists=(),
        certified_rate_rps=2.75,
        certification=verdict,
        certified=None,
        quality=None,
        nearest_miss=None,
        scenario_digest="5" * 64,
        workload_digest="6" * 64,
        export={argv[0]: shlex.join(argv), "environment": dict(env)},
    )


def deployment_of(config, argv, env=None, *, engine, label, model):
    canonical = Canonical.of(argv, env or {}, config.digest)
    return Deployment(
        canonical=canonical,
        engine=engine,
        name="chat",
        served_model=label,
        model=model,
        health_path="/health",
        port=8080,
        image="example/image:v1.2.3",
        program=canonical.program[0],
        gpus=2 if engine in {"vllm", "sglang", "tgi"} else 0,
        memory_bytes=3 << 30,
        winner=winner_of(config, argv, env or {}, engine=engine, label=label),
    )


def write_gguf(path):
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in {"block_count": 2, "embedding_length": 64, "context_length": 256}.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_head_count(4)
    writer.add_token_list([f"token{i}" for i in range(50)])
    writer.add_tensor("token_embd.weight", np.zeros((50, 64), dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def random_config(space, rng):
    return space.complete({knob.name: rng.choice(knob.choices) for knob in space.knobs})
