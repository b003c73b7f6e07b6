"""`kit platform apply`: the order of the stages, over the manifests that are really built.

No cluster takes part: a stand-in refuses what an API server would refuse (stand_in_cluster.py).
"""

import itertools

import pytest
from stand_in_cluster import OBJECTS, SMALL, Cluster

from kit.base import CommandFailed, UsageError
from kit.deploy import apply, manifests


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


def sent(cluster, text):
    """Send manifests; return what was reported."""
    lines, clock = [], Clock()
    apply.apply(cluster, text, lines.append, clock, clock.sleep)
    return lines


def test_small_platform_comes_up_in_one_pass_and_in_one_stream_it_does_not():
    cluster = Cluster()
    sent(cluster, SMALL)
    assert len(cluster.objects) == OBJECTS
    assert apply.without_sidecar(cluster) == []
    at_once = Cluster()
    code, _, answer = at_once.kubectl(["apply"], SMALL)
    assert code
    assert "no matches for kind" in answer
    assert 'namespaces "anna" not found' in answer


def test_pod_that_started_before_istio_is_reported():
    """As upstream's guide has it: one stream, sent until the cluster accepts it."""
    cluster = Cluster()
    while cluster.kubectl(["apply"], SMALL)[0]:
        assert len(cluster.calls) < 10
    assert apply.without_sidecar(cluster) == ["kubeflow/profiles"]


@pytest.mark.parametrize("name", manifests.ENVIRONMENTS)
def test_whole_environment_is_accepted_in_one_pass(built, name):
    """One stream needs several passes: definitions, webhooks and namespaces come too late."""
    text, objects = built[name]
    cluster = Cluster()
    if not any(o["kind"] == "CustomResourceDefinition" for o in objects):  # the skeleton
        cluster.spaces |= {o["metadata"].get("namespace", "") for o in objects}
    assert sent(cluster, text)
    assert len(cluster.objects) == len(objects)
    assert cluster.bare == []
    assert apply.without_sidecar(cluster) == []


@pytest.mark.parametrize("calls", range(1, 10))
def test_command_that_was_stopped_is_completed_by_the_next(calls):
    cluster = Cluster()
    complete, count = cluster.kubectl, itertools.count(1)

    def stopped(*words):
        if next(count) > calls:
            raise KeyboardInterrupt
        return complete(*words)

    cluster.kubectl = stopped
    with pytest.raises(KeyboardInterrupt):
        sent(cluster, SMALL)
    cluster.kubectl = complete
    for _ in range(2):  # and once more changes nothing
        sent(cluster, SMALL)
        assert len(cluster.objects) == OBJECTS
    assert apply.without_sidecar(cluster) == []


def test_each_object_comes_after_what_it_needs(built):
    for text, objects in built.values():
        rows = apply.parse_manifests(text)
        stages = apply.stages(rows)
        assert sum(map(len, stages.values())) == len(rows) == len(objects)
        named = [
            (o["kind"], o["metadata"]["name"], o["metadata"].get("namespace", "")) for o in objects
        ]
        assert [(row.kind, row.name, row.namespace) for row in rows] == named
        order = list(stages)
        assert order == [name for name in apply.STAGES if name in stages]
        assert {row.kind for row in stages[apply.NAMESPACES]} >= {"Namespace"}


def test_stage_that_is_not_accepted_yet_is_sent_again_and_reported_once():
    cluster = Cluster()
    refuse, put = [True] * 3, cluster.put

    def late(each):
        if each["kind"] == "Issuer" and refuse:
            refuse.pop()
            return 'Error from server (InternalError): failed calling webhook "x": no endpoints'
        return put(each)

    cluster.put = late
    lines = sent(cluster, SMALL)
    assert len([line for line in lines if "not accepted yet" in line]) == 1


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        ("The Deployment is invalid: spec.selector: field is immutable", 0),
        ("Error from server (InternalError): no endpoints available", apply.ACCEPT_TIMEOUT_S),
    ],
)
def test_refused_stage_ends_the_command_with_the_answer_of_the_server(error, seconds):
    cluster, clock = Cluster(), Clock()
    cluster.put = lambda each: error
    with pytest.raises(CommandFailed, match=error[:40].replace("(", r"\(").replace(")", r"\)")):
        apply.apply(cluster, SMALL, print, clock, clock.sleep)
    assert seconds <= clock.now <= seconds + 2 * apply.RETRY_PAUSE_S


def test_manifests_with_placeholders_are_not_applied(built, made):
    folder, commit = made
    text = manifests.build("standalone-kfp", folder, commit, placeholders=True)
    cluster = Cluster()
    with pytest.raises(UsageError, match="placeholders"):
        sent(cluster, text)
    assert cluster.calls == []
