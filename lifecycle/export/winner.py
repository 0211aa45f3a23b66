"""`winner.json` as it stands: the whole answer with its evidence, for programs.

Its JSON Schema is winner.schema.json in this folder. Knows nothing of deployments.
"""

import json
import shlex
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lifecycle.export.base import Canonical, Deployment
from scenarios.errors import UserError
from tuners.results import Winner

SCHEMA_FILE = Path(__file__).with_name("winner.schema.json")


class WinnerJson:
    name = "winner"
    file_name = "winner.json"

    def render(self, deployment: Deployment) -> str:
        return deployment.winner.model_dump_json(indent=2) + "\n"

    def parse(self, text: str) -> Canonical:
        try:
            winner = Winner.model_validate_json(text)
        except ValidationError as err:
            raise UserError(f"not a winner.json: {err}") from err
        programs = [line for name, line in winner.export.items() if name != "environment"]
        if not programs or winner.identity is None:
            raise UserError("this winner.json holds no configuration to deploy")
        environment = winner.export.get("environment", {})
        return Canonical.of(shlex.split(programs[0]), environment, winner.identity.config_digest)

    def digest(self, text: str) -> str:
        return self.parse(text).digest


def json_schema() -> dict[str, Any]:
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Winner.model_json_schema()}


def schema_text() -> str:
    """`json_schema` as it is stored in ``SCHEMA_FILE``."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    SCHEMA_FILE.write_text(schema_text(), encoding="utf-8")
