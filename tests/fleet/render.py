"""
Run by the environment of scripts/install-fleet: Helm's own engine renders the chart, and schemas check it:
Kubernetes' own, and those of custom resources in custom_resources.json.

Its input is a list of [release, values]; its output, for each, {"manifests": {file: text}, "problems": [...]} or
{"error": text}.
"""

import json
import sys

import custom_resources
import helm_python
import kubernetes_validate
import yaml

KUBERNETES = "1.31"


def problems_of(manifests):
    for file, text in manifests.items():
        for document in yaml.safe_load_all(text) if file.endswith(".yaml") else ():
            if document is not None:
                yield from (f"{file}: {problem}" for problem in problems_of_document(document))


def problems_of_document(document):
    if custom_resources.is_custom(document):
        return custom_resources.problems_of(custom_resources.kind_of(document), document)
    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except Exception as error:  # noqa: BLE001 - whatever is wrong with it is to be shown
        return [str(error)]
    return []


def rendered(chart, release, values):
    try:
        chart.validate_schema(values)
        manifests = chart.render(values, name=release, namespace="models")
    except helm_python.HelmError as error:
        return {"error": str(error)}
    return {"manifests": manifests, "problems": list(problems_of(manifests))}


def main():
    cases = json.load(sys.stdin)
    with helm_python.Chart.load(sys.argv[1]) as chart:
        json.dump([rendered(chart, *case) for case in cases], sys.stdout)


if __name__ == "__main__":
    main()
