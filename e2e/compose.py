"""Judges a rendered Compose file: by the published schema, and by whether everything fits together.

    compose.py SCHEMA DIRECTORY PROGRAM

The configuration of each Synapse service is made as its containers have it made, by `PROGRAM configure`. Whatever host,
port or path that names has to be in the Compose file. Prints one line for each thing that is wrong.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import jsonschema
import yaml

wrong: list[str] = []


def check(good: bool, text: str) -> None:
    if not good:
        wrong.append(text)


def strings(value: object) -> list[str]:
    """Every string in a document, keys left out."""
    if isinstance(value, dict):
        return [text for item in value.values() for text in strings(item)]
    if isinstance(value, list):
        return [text for item in value for text in strings(item)]
    return [value] if isinstance(value, str) else []


def configured(directory: Path, program: str, instance: str) -> dict:
    """A process's configuration, by the command that writes it."""
    with tempfile.TemporaryDirectory() as out:
        stack = directory / "compose-stack.yaml"
        subprocess.run([program, "--config", stack, "configure", "--instance", instance, "--out", out], check=True)
        files = [Path(out) / "shared.yaml", Path(out) / f"{instance}.yaml"]
        return {key: value for file in files for key, value in yaml.safe_load(file.read_text()).items()}


def mounts(document: dict, service: dict) -> dict[str, str]:
    """What lies where in a container: the target of each mount, with its source, in which `$$` is a dollar sign."""
    found = {volume["target"]: volume["source"] for volume in service.get("volumes", [])}
    for kind in ("secrets", "configs"):
        for item in service.get(kind, []):
            found[item["target"]] = document[kind][item["source"]]["file"]
    return {target: source.replace("$$", "$") for target, source in found.items()}


def covered(path: str, places: dict[str, str]) -> bool:
    return any(path == place or path.startswith(f"{place}/") for place in places)


def common(document: dict, directory: Path) -> None:
    """What holds for every service."""
    services, used = document["services"], {"networks": set(), "secrets": set(), "configs": set()}
    for name, service in services.items():
        check(service.get("read_only") is True, f"{name} can write to its image")
        check(service.get("cap_drop") == ["ALL"], f"{name} keeps capabilities")
        check("no-new-privileges:true" in service.get("security_opt", []), f"{name} can gain privileges")
        check(not service.get("user", "0").startswith("0"), f"{name} runs as root")
        check("pids_limit" in service, f"{name} has no limit of processes")
        check("memory" in service["deploy"]["resources"]["limits"], f"{name} has no limit of memory")
        check(name == "configure" or "healthcheck" in service, f"{name} is not asked how it is")
        for kind in used:
            items = service.get(kind, [])
            used[kind] |= {item if isinstance(item, str) else item["source"] for item in items}
        for other, how in service.get("depends_on", {}).items():
            check(other in services, f"{name} depends on {other}, which is not there")
            if how["condition"] == "service_healthy":
                check("healthcheck" in services.get(other, {}), f"{name} waits for {other}, which is never healthy")
        for target, source in mounts(document, service).items():
            path = directory / source
            check(path.exists(), f"{name} mounts {source} at {target}, which is not there")
    for kind, names in used.items():
        check(names == set(document[kind]), f"{kind}: declared {set(document[kind])}, used {names}")
    for network in ("synapse", "data"):
        check(document["networks"][network] == {"internal": True}, f"the network {network} is open")
    for name, service in services.items():
        check(name == "router" or "ports" not in service, f"{name} is published")
    for name, secret in document["secrets"].items():
        mode = (directory / secret["file"].replace("$$", "$")).stat().st_mode & 0o777
        check(mode == 0o600, f"the secret {name} has mode {mode:o}")


def synapse(document: dict, directory: Path, program: str) -> dict[str, dict]:
    """What holds for Synapse's services. Gives each one's configuration, by the service's name."""
    services, configurations = document["services"], {}
    for name, service in services.items():
        if service.get("entrypoint") != ["python", "-m"]:
            continue
        module, *arguments = service["command"]
        files = arguments[1::2]
        instance = Path(files[-1]).stem
        config = configurations[name] = configured(directory, program, instance)
        check(module == config.get("worker_app", "synapse.app.homeserver"), f"{name} runs {module}")
        places = mounts(document, service)
        paths = [text for text in strings(config) if text.startswith("/data")]
        for path in [*files, *paths]:
            check(covered(path, places), f"{name}: {path} is not mounted")
        for place in places:
            check(any(covered(path, {place: ""}) for path in [*files, *paths]), f"{name}: nothing reads {place}")
    for name, service in services.items():
        config = configurations.get(name)
        if not config:
            continue
        listeners = config.get("worker_listeners") or config["listeners"]
        ports = {resource: listener["port"] for listener in listeners for resource in listener["resources"][0]["names"]}
        check(f":{ports['health']}/health" in " ".join(service["healthcheck"]["test"]), f"{name} is asked elsewhere")
        reached = [(place["host"], place["port"], "replication") for place in config["instance_map"].values()]
        reached.append((config["database"]["args"]["host"], config["database"]["args"]["port"], None))
        reached.append((config["redis"]["host"], config["redis"]["port"], None))
        for host, port, resource in reached:
            other = services.get(host)
            if not other:
                check(resource is None and "." in host, f"{name} looks for {host}, which is not there")
                continue
            check(bool(set(other["networks"]) & set(service["networks"])), f"{name} and {host} share no network")
            if resource:
                there = configurations[host].get("worker_listeners") or configurations[host]["listeners"]
                serves = [one["port"] for one in there if resource in one["resources"][0]["names"]]
                check(port in serves, f"{host} serves no {resource} on {port}")
    return configurations


def programs(document: dict, directory: Path, program: str, configurations: dict[str, dict]) -> None:
    """What holds for this program's own services."""
    services, stack = document["services"], yaml.safe_load((directory / "compose-stack.yaml").read_text())
    command = services["configure"]["command"]
    with tempfile.TemporaryDirectory() as out:
        words = [{"/stack.yaml": str(directory / "compose-stack.yaml"), "/data/config": out}.get(w, w) for w in command]
        subprocess.run([program, *words], check=True)
        made = {path.name for path in Path(out).iterdir()}
    for name, service in services.items():
        if name in configurations:
            for file in service["command"][2::2]:
                check(Path(file).name in made, f"nothing makes {file} of {name}")
    plan = json.loads(
        subprocess.run(
            [program, "--config", directory / "compose-stack.yaml", "plan", "--json"], check=True, capture_output=True
        ).stdout
    )
    hosts = {instance["private"]["host"] for instance in plan["instances"]}
    check(hosts == set(configurations), f"planned are {hosts}, run are {set(configurations)}")
    router = services["router"]
    check("synapse" in router["networks"] and "data" not in router["networks"], "the router is on the wrong networks")
    port = stack["listen"]["address"].rsplit(":", 1)[1]
    check(any(str(p).endswith(f":{port}") for p in router["ports"]), f"the router's {port} is not published")
    places = mounts(document, router)
    for path in [text for text in strings(stack["listen"]) if text.startswith("/")]:
        check(covered(path, places), f"router: {path} is not mounted")


def main() -> None:
    schema, directory, program = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    document = yaml.safe_load((directory / "compose.yaml").read_text())
    validator = jsonschema.Draft201909Validator(json.loads(schema.read_text()))
    for error in validator.iter_errors(document):
        wrong.append(f"schema: {'.'.join(map(str, error.path))}: {error.message}")
    common(document, directory)
    configurations = synapse(document, directory, program)
    check(bool(configurations), "no service runs Synapse")
    programs(document, directory, program, configurations)
    print("\n".join(wrong))


if __name__ == "__main__":
    main()
