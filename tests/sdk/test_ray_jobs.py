"""`corral://NAME` as Ray's job client asks about it; tests/end_to_end asks with Ray itself."""

import importlib

import pytest

import corral
from corral.sdk import Client
from corral.sdk.errors import ApiError, ClusterNotReady, RequestInvalid
from sdk.fake_control_plane import KEY, FakeControlPlane


@pytest.fixture
def mnist(client: Client) -> str:
    """The name of a cluster that is ready."""
    return client.wait_ready(client.book(client.quote(cpu=1, name="mnist").id).id).name


def test_module_of_the_scheme_offers_the_function_that_ray_looks_for() -> None:
    """Ray looks into `dir()` before it calls: a name that is only made when it is asked for would not be found."""
    module = importlib.import_module("corral")
    assert "get_job_submission_client_cluster_info" in dir(module)


def test_cluster_is_found_with_the_renters_key(control_plane: FakeControlPlane, mnist: str) -> None:
    """Ray hands over what stands behind `://`, and reads four attributes of the answer."""
    found = corral.get_job_submission_client_cluster_info(
        mnist, create_cluster_if_needed=True, cookies=None, metadata={"a": "b"}, headers={"X-Own": "1"}
    )
    assert found.address == f"{control_plane.base_url}/c/mnist"
    assert found.headers == {"Authorization": f"Bearer {KEY}", "X-Own": "1"}
    assert (found.cookies, found.metadata) == (None, {"a": "b"})
    assert KEY not in repr(found)


def test_no_cluster_is_made_because_ray_says_if_needed(control_plane: FakeControlPlane, client: Client) -> None:
    """Booking costs money; only `corral up` does it."""
    with pytest.raises(ApiError) as refused:
        corral.get_job_submission_client_cluster_info("nobody", create_cluster_if_needed=True)
    assert refused.value.code == "cluster_unknown"
    assert client.clusters() == []
    with pytest.raises(RequestInvalid, match="corral:// names no cluster"):
        corral.get_job_submission_client_cluster_info("")


def test_cluster_that_is_over_takes_no_jobs(mnist: str, client: Client) -> None:
    """The same error as `corral job submit` gives."""
    client.end(mnist)
    with pytest.raises(ClusterNotReady):
        corral.get_job_submission_client_cluster_info(mnist)
