"""What every engine must keep, on a real process. A plug-in's author subclasses `EngineSuite`: docs/engines.md.

class TestMine(EngineSuite):
    engine = Mine()

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls):
        return ResolvedModel(...)
"""

import httpx
import pytest

from harness.engines.base import HostLimits
from harness.errors import ConfigurationImpossible
from harness.host import limits
from harness.supervise import launch
from scenarios.space import SearchSpace, ServingConfig
from scenarios.spec import EngineSpec


class EngineSuite:
    engine = None
    spec = EngineSpec()
    host = limits()  # what is planned for, and where the engine is launched
    roomy = HostLimits(64, 1 << 50, (1 << 40,) * 8)  # where nothing is refused for its memory

    @pytest.fixture(scope="class")
    @classmethod
    def space(cls, model) -> SearchSpace:
        return cls.engine.knobs(cls.spec, model, cls.host)

    @pytest.fixture(scope="class")
    @classmethod
    def running(cls, model, space, tmp_path_factory):
        plan = cls.engine.plan(cls.spec, model, space.default(), cls.host)
        log = tmp_path_factory.mktemp("engine") / "engine.log"
        with launch(cls.engine, cls.spec, plan, log) as running:
            yield running

    def test_it_has_a_name_and_a_version(self):
        assert self.engine.name
        assert self.engine.version()

    def test_defaults_are_among_the_choices_and_can_be_planned(self, model, space):
        for knob in space.knobs:
            assert knob.default in knob.choices, knob.name
            assert knob.doc, knob.name
        self.engine.plan(self.spec, model, space.default(), self.host)

    def test_planning_is_pure(self, model, space):
        for config in self._sample(model, space):
            first = self.engine.plan(self.spec, model, config, self.roomy)
            assert first == self.engine.plan(self.spec, model, config, self.roomy)
            assert first.config.digest == config.digest

    def test_equal_plans_mean_equal_configurations(self, model, space):
        """Every knob reaches the command line (or the environment): no two configurations launch alike."""
        configs = self._sample(model, space)
        plans = [self.engine.plan(self.spec, model, c, self.roomy) for c in configs]
        assert len({(p.argv, tuple(p.env.items())) for p in plans}) == len(configs)

    def test_it_completes_and_streams_with_usage(self, running):
        body = {"model": running.endpoint.served_model, "prompt": "One, two,", "max_tokens": 4, "temperature": 0}
        url = f"{running.endpoint.base_url}/completions"
        whole = httpx.post(url, json={**body, **running.endpoint.request_extras}, timeout=60)
        assert whole.json()["usage"]["completion_tokens"] == 4
        stream = {"stream": True, "stream_options": {"include_usage": True}}
        streamed = httpx.post(url, json={**body, **stream, **running.endpoint.request_extras}, timeout=60)
        assert streamed.text.count("data:") >= 2
        assert '"completion_tokens":4' in streamed.text.replace(" ", "")

    def test_its_tokenizer_counts_what_the_server_counts(self, running):
        tokens = self.engine.tokenize(running.endpoint, " the house by the river")
        if tokens is None:
            pytest.skip(f"{self.engine.name} cannot be asked for tokens")
        body = {"model": running.endpoint.served_model, "prompt": " the house by the river", "max_tokens": 1}
        said = httpx.post(f"{running.endpoint.base_url}/completions", json=body, timeout=60).json()
        assert said["usage"]["prompt_tokens"] == len(tokens)

    def test_metrics_are_numbers(self, running):
        assert all(isinstance(v, float) for v in self.engine.metrics(running.endpoint).values())

    def _sample(self, model, space: SearchSpace) -> list[ServingConfig]:
        """The default, and every change of one knob (and of what gives it a meaning) that can be planned."""
        configs = [space.default()]
        for knob in space.knobs:
            needed = {knob.when[0]: knob.when[1][0]} if knob.when else {}
            configs += [space.complete({**needed, knob.name: v}) for v in knob.choices if v != knob.default]
        return [c for c in configs if self._plannable(model, c)]

    def _plannable(self, model, config: ServingConfig) -> bool:
        try:
            self.engine.plan(self.spec, model, config, self.roomy)
        except ConfigurationImpossible:
            return False
        return True
