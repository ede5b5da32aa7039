"""The bill of materials of a package: CycloneDX 1.6 as JSON, the same bytes for the same package.

It lists what is inside, file by file as the index serves it, and who needs whom. Python and the C library are
Debian's, and on Debian's own bills.
"""

from __future__ import annotations

import datetime
import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import provision
from release.source import moment, project
from release.wheels import Wheel


def bill(package: str, version: str, wheels: Sequence[Wheel], entries: Mapping[str, str]) -> str:
    """The text for a package ``package`` (``edge-agent_0.1.0-1_amd64``); ``entries``: of the lock."""
    own = project()
    root = f"pkg:pypi/{own['name']}@{own['version']}"
    content = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": datetime.datetime.fromtimestamp(moment(), datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": {
                "type": "application",
                "bom-ref": root,
                "name": "edge-agent",
                "version": version,
                "description": own["description"],
                "licenses": [{"license": {"id": "Apache-2.0"}}],
                "purl": root,
            },
        },
        "components": [_component(each) for each in wheels],
        "dependencies": _dependencies(root, wheels, entries),
    }
    # A name for this content: whoever builds the same gives it the same one.
    serial = uuid.uuid5(uuid.NAMESPACE_URL, package + json.dumps(content, sort_keys=True))
    return json.dumps(content | {"serialNumber": f"urn:uuid:{serial}"}, indent=1, sort_keys=True) + "\n"


def _component(wheel: Wheel) -> dict[str, Any]:
    expression = wheel.metadata.get("License-Expression")
    return {
        "type": "library",
        "bom-ref": _purl(wheel),
        "name": wheel.name,
        "version": wheel.version,
        "purl": _purl(wheel),
        "hashes": [{"alg": "SHA-256", "content": wheel.sha256}],
        "licenses": [{"expression": expression}] if expression else [{"license": {"name": wheel.license}}],
        "properties": [{"name": "edge-agent:file", "value": wheel.path.name}],
    }


def _purl(wheel: Wheel) -> str:
    return f"pkg:pypi/{wheel.name}@{wheel.version}"


def _dependencies(root: str, wheels: Sequence[Wheel], entries: Mapping[str, str]) -> list[dict[str, Any]]:
    """Who needs whom, as the comments of the lock say."""
    refs = {each.name: _purl(each) for each in wheels}
    needs = [(root, provision.PROJECT), *((ref, name) for name, ref in refs.items())]
    return [
        {"ref": ref, "dependsOn": sorted(refs[each] for each in refs if name in provision.asked_by(entries[each]))}
        for ref, name in needs
    ]
