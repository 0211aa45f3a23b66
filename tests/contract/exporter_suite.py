"""What every export format must keep. A plug-in's author subclasses `ExporterSuite`.

class TestMine(ExporterSuite):
    exporter = Mine()

    @pytest.fixture
    def deployments(self):
        return [...]  # several `lifecycle.export.base.Deployment`, at least one that the format can carry
"""

import dataclasses

import pytest

from scenarios.errors import UserError


class ExporterSuite:
    exporter = None

    def _carried(self, deployments):
        """What the format can carry, with its text. All else it must refuse in words."""
        carried, refusals = [], []
        for deployment in deployments:
            try:
                carried.append((deployment, self.exporter.render(deployment)))
            except UserError as refusal:
                refusals.append(str(refusal))
        assert all(refusals)
        assert carried, f"{self.exporter.name} carries none of {len(deployments)} deployments"
        return carried

    def test_it_has_a_name_and_a_usual_file(self):
        assert self.exporter.name
        assert self.exporter.file_name

    def test_what_is_read_back_is_what_was_written(self, deployments):
        for deployment, text in self._carried(deployments):
            assert self.exporter.digest(text) == deployment.canonical.digest
            if hasattr(self.exporter, "parse"):
                assert self.exporter.parse(text) == deployment.canonical

    def test_it_is_pure(self, deployments):
        for deployment, text in self._carried(deployments):
            assert self.exporter.render(deployment) == text

    def test_another_configuration_has_another_digest(self, deployments):
        carried = self._carried(deployments)
        by_digest = {self.exporter.digest(text) for _, text in carried}
        assert len(by_digest) == len({deployment.canonical.digest for deployment, _ in carried})

    def test_where_it_runs_does_not_change_the_digest(self, deployments):
        deployment, text = self._carried(deployments)[0]
        elsewhere = dataclasses.replace(deployment, port=deployment.port + 1, name="elsewhere", image="own/image:1")
        assert self.exporter.digest(self.exporter.render(elsewhere)) == self.exporter.digest(text)

    def test_a_text_of_something_else_is_refused(self):
        with pytest.raises(UserError):
            self.exporter.digest("nothing: of ours\n")
