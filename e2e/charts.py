"""Renders Helm charts with the Helm engine itself, and holds what comes out against the schemas of the Kubernetes API.

Reads from stdin: {"versions": [Kubernetes versions], "cases": [{"name", "chart", "files": [values files], "values": what is
set above them, "upgrade": bool, "check": bool}]}.
Writes to stdout, for each case by name: {"error": text} where Helm refuses, else {"text": {template: text},
"objects": [object], "invalid": [text]}.
"""

import json
import sys

import helm_python
import kubernetes_validate
import yaml

RELEASE = "matrix"
NAMESPACE = "chat"
# How severe what `helm lint` says is when it only informs.
INFORMATION = 1


class Loader(yaml.CSafeLoader):
    """YAML without keys that are given twice."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"`{key}` is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


Loader.add_constructor("tag:yaml.org,2002:map", lambda loader, node: loader.construct_mapping(node, deep=True))


def check(thing, versions, seen):
    """What the API would say against an object; the same object is asked about once."""
    text = json.dumps(thing, sort_keys=True)
    if text in seen:
        return seen[text]
    found = []
    for version in versions:
        try:
            kubernetes_validate.validate(thing, version, strict=True)
        except kubernetes_validate.SchemaNotFoundError:
            # A custom resource.
            break
        except kubernetes_validate.ValidationError as error:
            place = ".".join(str(part) for part in error.path)
            found.append(f"{thing['kind']} {thing['metadata']['name']} ({version}): {place}: {error.message}")
    seen[text] = found
    return found


def merged(base, over):
    """Values above others, as Helm merges files of them."""
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    return {key: merged(base.get(key), over[key]) if key in over else base[key] for key in [*base, *over]}


def main():
    job = json.load(sys.stdin)
    charts, seen, answer = {}, {}, {}
    for case in job["cases"]:
        path = case["chart"]
        if path not in charts:
            charts[path] = helm_python.Chart.load(path)
        values = {}
        for file in case["files"]:
            with open(file, encoding="utf-8") as text:
                values = merged(values, yaml.load(text, Loader))
        values = merged(values, case["values"])
        try:
            upgrade = case.get("upgrade", False)
            texts = charts[path].render(
                values=values, name=RELEASE, namespace=NAMESPACE, is_install=not upgrade, is_upgrade=upgrade
            )
        except helm_python.HelmError as error:
            answer[case["name"]] = {"error": str(error)}
            continue
        objects, invalid = [], []
        for template, text in sorted(texts.items()):
            if not template.endswith(".yaml"):
                continue
            try:
                objects += [thing for thing in yaml.load_all(text, Loader) if thing is not None]
            except yaml.YAMLError as error:
                invalid.append(f"{template}: {error}")
        for thing in objects:
            invalid += check(thing, job["versions"] if case.get("check", True) else [], seen)
        if case.get("check", True):
            said = helm_python.lint(path, values, strict=True)["messages"]
            invalid += [f"{word['path']}: {word['error']}" for word in said if word["severity"] > INFORMATION]
        answer[case["name"]] = {"text": texts, "objects": objects, "invalid": invalid}
    json.dump(answer, sys.stdout)


main()
