"""Strict validation of JobSet manifests, by the models that Kubeflow generates from the OpenAPI
schemas of JobSet v1alpha2 and Kubernetes (package `kubeflow-trainer-api`, Apache-2.0)."""

from typing import Any

from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

# What the schema only tells in words: allowed values of string fields.
ALLOWED = {
    "apiVersion": {"jobset.x-k8s.io/v1alpha2"},
    "kind": {"JobSet"},
    "action": {
        "FailJobSet",
        "RestartJobSet",
        "RestartJobSetAndIgnoreMaxRestarts",  # a JobSet's failure policy
        "FailJob",
        "FailIndex",
        "Ignore",
        "Count",
    },  # a Job's pod failure policy
    "onJobFailureReasons": {
        "BackoffLimitExceeded",
        "DeadlineExceeded",
        "FailedIndexes",
        "MaxFailedIndexesExceeded",
        "PodFailurePolicy",
    },
    "operator": {"In", "NotIn"},
    "completionMode": {"Indexed", "NonIndexed"},
    "restartPolicy": {"Never", "OnFailure"},
}


def problems(manifest: dict[str, Any]) -> list[str]:
    """Returns what the server would refuse: unknown fields, fields of the wrong kind, and values
    that are not allowed."""
    try:
        known = JobsetV1alpha2JobSet.from_dict(manifest)
    except ValueError as error:
        return [str(error)]
    assert known is not None
    return [*_lost(manifest, known.to_dict(), ""), *_not_allowed(manifest, "")]


def _lost(node: Any, known: Any, path: str) -> list[str]:
    """Returns the paths of fields of a manifest that the models do not have: they ignore them."""
    if isinstance(node, dict) and isinstance(known, dict):
        return [
            line
            for key, value in node.items()
            for line in (
                _lost(value, known[key], f"{path}.{key}")
                if key in known
                else [f"unknown field {path}.{key}"]
            )
        ]
    if isinstance(node, list) and isinstance(known, list) and len(node) == len(known):
        return [
            line
            for i, pair in enumerate(zip(node, known, strict=True))
            for line in _lost(*pair, f"{path}[{i}]")
        ]
    return [] if node == known else [f"{path} is {node!r}"]


def _not_allowed(node: Any, path: str, key: str = "") -> list[str]:
    if isinstance(node, dict):
        return [
            line
            for name, value in node.items()
            for line in _not_allowed(value, f"{path}.{name}", name)
        ]
    if isinstance(node, list):
        return [
            line
            for i, value in enumerate(node)
            for line in _not_allowed(value, f"{path}[{i}]", key)
        ]
    return [f"{path} is {node!r}"] if key in ALLOWED and node not in ALLOWED[key] else []
