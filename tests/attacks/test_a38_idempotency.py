"""A38: an `Idempotency-Key` of somebody else, or used again for something else."""

from __future__ import annotations

import pytest

from tests.client import Person


@pytest.mark.parametrize("path", ["/api/jobs", "/api/jobs/batch"])
def test_keys_are_each_user_s_own(alice: Person, bob: Person, path: str) -> None:
    """B, who knows A's key and request, gets a job of his own, and learns nothing of hers."""
    headers = {"Idempotency-Key": f"shared-{path.rpartition('/')[2]}"}
    job = {"code": "true", "delay": 3600, "name": "same"}
    body = {"jobs": [job]} if path.endswith("batch") else job

    def first(person: Person) -> str:
        record = person.api.post(path, body, headers=headers).data
        return str((record[0] if isinstance(record, list) else record)["id"])

    hers, his = first(alice), first(bob)
    assert hers != his
    assert (first(alice), first(bob)) == (hers, his)
    assert bob.api.get(f"/api/jobs/{hers}").status == 404
    other = {"jobs": [{**job, "name": "other"}]} if path.endswith("batch") else {**job, "name": "other"}
    for person in (alice, bob):
        answer = person.api.post(path, other, headers=headers)
        assert (answer.status, answer.code) == (422, "idempotency_mismatch")
        assert "same" not in answer.body["message"]
    # Nor does a key open what belongs to another route.
    assert bob.api.post(f"/api/jobs/{hers}/rerun", headers=headers).status == 404
    assert bob.api.post(f"/api/jobs/{his}/rerun", headers=headers).status == 422
    for person, job_id in ((alice, hers), (bob, his)):
        person.api.post(f"/api/jobs/{job_id}/cancel").data  # noqa: B018
