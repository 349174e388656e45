"""What a cluster does to the manifests, once they are applied."""

import pytest

from tests.k8s import build, of_kind, pod_spec

OVERLAYS = (".", "overlays/production", "overlays/nats")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_node_that_is_emptied_keeps_no_pod_from_the_others(overlay: str) -> None:
    """Counted as a node that has none, it would let each of the others have one pod and no more.

    The evicted pod would wait for it, and the eviction of the next for that pod.
    """
    for manifest in of_kind(build(overlay), "Deployment"):
        constraints = pod_spec(manifest)["topologySpreadConstraints"]
        assert {it["topologyKey"] for it in constraints} >= {"kubernetes.io/hostname"}
        assert {it["nodeTaintsPolicy"] for it in constraints} == {"Honor"}
