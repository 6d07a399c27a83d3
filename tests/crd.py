"""What an API server would say of an object of a custom kind: its definition's schema, read strictly.

The server drops fields that the schema does not know, without a word; here they are errors. Rules in CEL are not run.
"""

from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parent.parent
PLACES = (ROOT.parent / "shared", ROOT.parent.parent / "shared")
"""Beside the checkout, or beside the folder of worktrees that it lies in."""


@cache
def definition() -> dict[str, Any]:
    """The definition of RayJobs; skips the test where it is not on this machine."""
    for place in PLACES:
        path = place / "data" / "kuberay" / "ray.io_rayjobs.yaml"
        if path.exists():
            found: dict[str, Any] = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
            return found
    pytest.skip("KubeRay's definition of RayJobs is not here (../shared/data/kuberay/ray.io_rayjobs.yaml)")


def problems(found: dict[str, Any], manifest: dict[str, Any]) -> list[str]:
    """What is wrong with `manifest` by the definition `found`."""
    group, _, version = manifest["apiVersion"].partition("/")
    spec = found["spec"]
    if (group, manifest["kind"]) != (spec["group"], spec["names"]["kind"]):
        return [f"{manifest['apiVersion']} {manifest['kind']} is no {spec['names']['kind']} of {spec['group']}"]
    (served,) = [entry for entry in spec["versions"] if entry["name"] == version and entry["served"]]
    schema = served["schema"]["openAPIV3Schema"]
    properties = {**schema["properties"], "metadata": {"x-kubernetes-preserve-unknown-fields": True}}
    checker = jsonschema.Draft7Validator(strict({**schema, "properties": properties}))
    return [f"{error.json_path}: {error.message}" for error in checker.iter_errors(manifest)]


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """The JSON schema of a structural schema of Kubernetes that knows no unknown fields."""
    kept = {
        key: value for key, value in schema.items() if not key.startswith("x-") and key not in ("format", "default")
    }
    if schema.get("x-kubernetes-int-or-string"):
        kept.pop("anyOf", None)
        kept["type"] = ["integer", "string"]
    if "properties" in schema:
        kept["properties"] = {name: strict(value) for name, value in schema["properties"].items()}
    if isinstance(schema.get("items"), dict):
        kept["items"] = strict(schema["items"])
    if isinstance(schema.get("additionalProperties"), dict):
        kept["additionalProperties"] = strict(schema["additionalProperties"])
    elif schema.get("type") == "object" and not schema.get("x-kubernetes-preserve-unknown-fields"):
        kept["additionalProperties"] = False
    return kept
