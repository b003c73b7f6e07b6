"""Validate a crate with roc-validator, without network: `validate_crate.py FOLDER`.

Run in a venv of its own that has roc-validator. The one document that the validator fetches, the
context of RO-Crate 1.1, is answered here with the terms that the kit's crates use. Prints what is
wrong, one JSON line each.
"""

import json
import sys

import requests
from rocrate_validator import models, services
from rocrate_validator.utils import document_loader, http

CONTEXT = "https://w3id.org/ro/crate/1.1/context"
SCHEMA = [
    "ComputerLanguage",
    "CreateAction",
    "CreativeWork",
    "Dataset",
    "Person",
    "PropertyValue",
    "SoftwareSourceCode",
    "about",
    "actionStatus",
    "additionalType",
    "agent",
    "contentSize",
    "datePublished",
    "defaultValue",
    "description",
    "encodingFormat",
    "endTime",
    "exampleOfWork",
    "hasPart",
    "instrument",
    "license",
    "mainEntity",
    "mentions",
    "name",
    "object",
    "programmingLanguage",
    "result",
    "startTime",
    "url",
    "value",
    "valueRequired",
    "version",
]
TERMS = {term: f"http://schema.org/{term}" for term in SCHEMA} | {
    "File": "http://schema.org/MediaObject",
    "ComputationalWorkflow": "https://bioschemas.org/ComputationalWorkflow",
    "FormalParameter": "https://bioschemas.org/FormalParameter",
    "input": "https://bioschemas.org/ComputationalWorkflow#input",
    "conformsTo": "http://purl.org/dc/terms/conformsTo",
}


def context(url: str) -> object:
    if url != CONTEXT:
        raise SystemExit(f"the crate needs {url}, which cannot be answered here")
    return {"@context": TERMS}


def get(self: object, url: str, **_how: object) -> requests.Response:
    answer = requests.Response()
    answer.status_code, answer.url = 200, url
    answer.headers["Content-Type"] = "application/ld+json"
    answer._content = json.dumps(context(url)).encode()
    return answer


document_loader._fetch_json_ld = context
http.HttpRequester.get = http.HttpRequester.head = get
wrong = 0
for profile in ("ro-crate-1.1", "process-run-crate-0.5", "workflow-run-crate-0.5"):
    result = services.validate(
        services.ValidationSettings(
            rocrate_uri=sys.argv[1],
            profile_identifier=profile,
            requirement_severity=models.Severity.REQUIRED,
        )
    )
    for issue in result.get_issues():
        wrong += 1
        print(
            json.dumps({"profile": profile, "check": issue.check.identifier, "said": issue.message})
        )
sys.exit(1 if wrong else 0)
