"""Requests generated from the API's own document: 20 for each path."""

import json

import pytest
import schemathesis
from forwarder_buckets import ANNA, BEA, ForwarderBuckets, known_people
from hypothesis import HealthCheck, Phase
from hypothesis import settings as hypothesis_settings
from schemathesis.specs.openapi.checks import allow_header_conformance

from kit.forwarder.api import forwarder_api
from kit.forwarder.serve import serve

document = schemathesis.openapi.from_dict(json.loads(json.dumps(forwarder_api({}).openapi())))
# The parameters of a request are those of its experiment, which no document can list: a body that
# the schema allows may name others, and is answered with 422.
document.config.checks.positive_data_acceptance.expected_statuses.append("422")


# Slow: xdist's scheduling by file loses all but one of several tests with the same id
# (pytest-xdist 3.8.0 keeps them in a dict by id), and schemathesis names them all alike.
pytestmark = pytest.mark.slow


@pytest.fixture
def world(tmp_path):
    return ForwarderBuckets(tmp_path)


@pytest.fixture
def known(world, tmp_path):
    return known_people(world, tmp_path)


@pytest.fixture
def url(known):
    with serve(forwarder_api(known), "127.0.0.1", 0) as port:
        yield f"http://127.0.0.1:{port}"


@document.parametrize()
@hypothesis_settings(
    max_examples=20,
    derandomize=True,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_every_answer_conforms_to_the_document(case, url):
    # Starlette's Allow names the methods of one of two routes with the same path
    headers = {"Authorization": f"Bearer {ANNA}"}
    answer = case.call_and_validate(
        base_url=url, headers=headers, excluded_checks=[allow_header_conformance]
    )
    assert not {ANNA, BEA} & set(answer.text.split('"'))
