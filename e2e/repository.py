"""Judges a repository of Helm charts with the Helm engine itself.

    repository.py CHARTS REPOSITORY

The engine loads and renders each archive, and packages the same chart by itself; it reads the index over HTTP and pulls from
it. The OCI layouts are read as a registry's client would. Prints one line for each thing that is wrong.
"""

import functools
import hashlib
import http.server
import json
import sys
import tarfile
import tempfile
import threading
from pathlib import Path

import helm_python
import yaml

wrong: list[str] = []


def check(good: bool, text: str) -> None:
    if not good:
        wrong.append(text)


def files(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive) as tar:
        members = tar.getmembers()
        check(all(one.isfile() and one.uid == one.gid == 0 and one.mode == 0o644 for one in members), f"{archive}: owners")
        return {one.name: tar.extractfile(one).read() for one in members}


def archives(charts: Path, repository: Path) -> dict[str, dict]:
    """What holds for each archive. Gives each chart's metadata by its name."""
    found = {}
    for directory in sorted(path.parent for path in charts.glob("*/Chart.yaml")):
        metadata = yaml.safe_load((directory / "Chart.yaml").read_text())
        name, version = metadata["name"], metadata["version"]
        found[name] = metadata
        archive = repository / f"{name}-{version}.tgz"
        values = yaml.safe_load((directory / "ci" / "minimal.yaml").read_text()) if (directory / "ci").exists() else {}
        with helm_python.Chart.load(archive) as ours, helm_python.Chart.load(directory) as theirs:
            render = functools.partial(helm_python.Chart.render, values=values, name="x", namespace="y")
            check(render(ours) == render(theirs), f"{name} renders otherwise from its archive")
        with tempfile.TemporaryDirectory() as out:
            own = Path(helm_python.package(directory, destination=out))
            with tarfile.open(own) as tar:
                members = {one.name for one in tar.getmembers() if one.isfile()}
            check(members == set(files(archive)), f"{name}: Helm packages {members ^ set(files(archive))} otherwise")
        shown = helm_python.show(str(archive), output_format="chart")
        check(yaml.safe_load(shown) == metadata, f"{name}: Helm shows {shown}")
    return found


def index(repository: Path, charts: dict[str, dict]) -> None:
    """The index, as Helm gets it from a web server, and what it pulls from there."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=repository)
    handler.func.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        entries = helm_python.repo_index(url)["entries"]
        check(set(entries) == set(charts), f"the index has {set(entries)}")
        for name, metadata in charts.items():
            archive = repository / f"{name}-{metadata['version']}.tgz"
            digests = [one["digest"] for one in entries[name]]
            check(digests == [hashlib.sha256(archive.read_bytes()).hexdigest()], f"{name}: {digests}")
            with tempfile.TemporaryDirectory() as out:
                helm_python.pull(name, repo_url=url, version=metadata["version"], destination=out)
                (pulled,) = Path(out).iterdir()
                check(pulled.read_bytes() == archive.read_bytes(), f"{name}: something else is pulled")
        server.shutdown()
    # By itself, Helm makes the same index, but for the times.
    ours = yaml.safe_load((repository / "index.yaml").read_text())
    with tempfile.TemporaryDirectory() as out:
        for archive in repository.glob("*.tgz"):
            (Path(out) / archive.name).write_bytes(archive.read_bytes())
        helm_python.repo_index_generate(out)
        theirs = yaml.safe_load((Path(out) / "index.yaml").read_text())
    for document in (ours, theirs):
        document.pop("generated")
        for entry in document["entries"].values():
            entry[0].pop("created")
    check(ours == theirs, f"Helm makes another index: {theirs}")


def layouts(repository: Path, charts: dict[str, dict]) -> None:
    for name, metadata in charts.items():
        layout = repository / "oci" / name
        check(json.loads((layout / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}, f"{name}: layout")

        def blob(descriptor: dict, kind: str) -> bytes:
            algorithm, digest = descriptor["digest"].split(":")
            data = (layout / "blobs" / algorithm / digest).read_bytes()
            check(hashlib.new(algorithm, data).hexdigest() == digest, f"{name}: {digest} holds something else")
            check(descriptor["size"] == len(data) and descriptor["mediaType"] == kind, f"{name}: {descriptor}")
            return data

        (listed,) = json.loads((layout / "index.json").read_text())["manifests"]
        tag = listed["annotations"]["org.opencontainers.image.ref.name"]
        check(tag == metadata["version"].replace("+", "_"), f"{name} has the tag {tag}")
        manifest = json.loads(blob(listed, "application/vnd.oci.image.manifest.v1+json"))
        config = json.loads(blob(manifest["config"], "application/vnd.cncf.helm.config.v1+json"))
        check(config == metadata, f"{name}: the configuration is {config}")
        (layer,) = manifest["layers"]
        content = blob(layer, "application/vnd.cncf.helm.chart.content.v1.tar+gzip")
        archive = repository / f"{name}-{metadata['version']}.tgz"
        check(content == archive.read_bytes(), f"{name}: the layer is not the archive")
        check(len(list((layout / "blobs" / "sha256").iterdir())) == 3, f"{name}: blobs that nothing names")


def main() -> None:
    charts, repository = Path(sys.argv[1]), Path(sys.argv[2])
    found = archives(charts, repository)
    index(repository, found)
    layouts(repository, found)
    print("\n".join(wrong))


if __name__ == "__main__":
    main()
