"""Weights that draft, on this machine's disk: a second folder that a container must see."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from lifecycle.export.compose import Compose
from lifecycle.export.kserve import KServe
from lifecycle.export.kubernetes import Kubernetes
from lifecycle.export.production_stack import ProductionStack
from scenarios.errors import UserError
from scenarios.space import ServingConfig

sys.path.insert(0, str(Path(__file__).parent))
from deployments import deployment_of

DRAFT = "/m/small draft"


@pytest.fixture
def drafting():
    said = json.dumps({"method": "draft_model", "model": DRAFT, "num_speculative_tokens": 3})
    argv = ["vllm", "serve", "/m/large", "--enable-prefix-caching", "--speculative-config", said]
    return deployment_of(ServingConfig("vllm", {}), argv, engine="vllm", label="m", model="/m/large")


def values_of(document, *keys):
    """Every text that stands under one of ``keys``, however deep."""
    if isinstance(document, list):
        return {found for below in document for found in values_of(below, *keys)}
    if not isinstance(document, dict):
        return set()
    own = {value for key, value in document.items() if key in keys and isinstance(value, str)}
    return own | {found for below in document.values() for found in values_of(below, *keys)}


@pytest.mark.parametrize(
    ("exporter", "keys"),
    [
        (Compose(), ("source", "target")),
        (Kubernetes(), ("mountPath",)),
        (ProductionStack(), ("mountPath",)),
    ],
)
def test_it_is_mounted_beside_the_model_at_its_own_path(drafting, exporter, keys):
    text = exporter.render(drafting)
    documents = list(YAML(typ="safe").load_all(text))
    assert values_of(documents, *keys) - {"/dev/shm"} == {"/m/large", DRAFT}
    assert exporter.parse(text) == drafting.canonical


def test_kserve_says_that_it_brings_one_model(drafting):
    with pytest.raises(UserError, match="brings one model: draft with weights of the hub"):
        KServe().render(drafting)


def test_a_model_that_drafts_for_itself_is_mounted_once(drafting):
    assert dataclasses.replace(drafting, model=DRAFT).folders == {"model": DRAFT}
