"""Loads rendered configuration with Synapse's own parser, and says what Synapse understood.

Takes a JSON document on stdin and writes one to stdout; `synapse.rs` beside this file makes the one and judges the
other. Every process of every stack is loaded as its program loads it.
"""

import io
import json
import multiprocessing
import os
import signal
import sys

import attr
import yaml

# Values under these paths go to other libraries or are only passed along, which leaves no trace in the record of
# reads. The facts below show what became of them.
UNRECORDED = ("database.args", "instance_map.")


class Recorder(dict):
    """A mapping that remembers which of its keys were asked for, at every depth."""

    def __init__(self, source, path, reads):
        super().__init__({k: wrap(v, f"{path}{k}", reads) for k, v in source.items()})
        self._path = path
        self._reads = reads

    def _read(self, key):
        self._reads.add(f"{self._path}{key}")

    def __getitem__(self, key):
        self._read(key)
        return super().__getitem__(key)

    def get(self, key, default=None):
        self._read(key)
        return super().get(key, default)

    def __contains__(self, key):
        self._read(key)
        return super().__contains__(key)

    # Having an __iter__ of its own keeps `**mapping` from bypassing all of these methods.
    def __iter__(self):
        return super().__iter__()

    def items(self):
        for key in self:
            self._read(key)
        return super().items()


def wrap(value, path, reads):
    if isinstance(value, dict):
        return Recorder(value, f"{path}.", reads)
    if isinstance(value, list):
        return [wrap(item, f"{path}.{i}", reads) for i, item in enumerate(value)]
    return value


def paths(value, path=""):
    """The path of every key in a document."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield f"{path}{key}"
            yield from paths(item, f"{path}{key}.")
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from paths(item, f"{path}{i}.")


def unread(file, reads):
    with open(file) as f:
        document = yaml.safe_load(f)
    return sorted(p for p in paths(document) if p not in reads and not p.startswith(UNRECORDED))


def parse(module, args):
    """The configuration as the program `module` loads it, and the keys that it asked for."""
    from synapse.config import _base

    original = _base.read_config_files
    reads = set()

    def read_config_files(files):
        # Main reads twice, first to generate what is missing: only the second read is the real one.
        reads.clear()
        return Recorder(original(files), "", reads)

    _base.read_config_files = read_config_files
    try:
        if module == "synapse.app.homeserver":
            from synapse.app.homeserver import load_or_generate_config as load
        else:
            from synapse.app.generic_worker import load_config as load
        config = load(args)
    finally:
        _base.read_config_files = original
    return config, reads


def listener(definition):
    options = definition.http_options
    where = (
        {"path": definition.path, "mode": definition.mode}
        if hasattr(definition, "path")
        else {"port": definition.port, "bind_addresses": definition.bind_addresses}
    )
    return {
        **where,
        "type": definition.type,
        "resources": [name for resource in options.resources for name in resource.names],
        "x_forwarded": options.x_forwarded,
        "request_id_header": options.request_id_header,
    }


def database(config):
    """The database's arguments, after asking the libraries that get them whether they know them all."""
    from inspect import signature

    from psycopg2.extensions import make_dsn, parse_dsn
    from twisted.enterprise.adbapi import ConnectionPool

    (database,) = config.database.databases
    args = database.config["args"]
    pool = {k: v for k, v in args.items() if k.startswith("cp_")}
    unknown = [k for k in pool if not hasattr(ConnectionPool, k[3:]) and k not in signature(ConnectionPool).parameters]
    if unknown:
        raise ValueError(f"the connection pool knows no {unknown}")
    parse_dsn(make_dsn(**{k: v for k, v in args.items() if k not in pool}))
    return {"engine": database.config["name"], "args": dict(args)}


def facts(config, main):
    worker = config.worker
    media = config.media
    duties = {
        "background": worker.run_background_tasks,
        "appservices": worker.should_notify_appservices,
        "user_directory": worker.should_update_user_directory,
        "pusher": worker.start_pushers,
        "federation_sender": worker.send_federation,
    }
    result = {
        "app": worker.worker_app,
        "name": worker.instance_name,
        "writers": attr.asdict(worker.writers),
        "instance_map": {
            # Workers call main `master` here, main itself does not.
            "main" if name == "master" else name: place.model_dump(exclude={"tls"})
            for name, place in worker.instance_map.items()
        },
        "duties": [name for name, does in duties.items() if does],
        "pushers": worker.pusher_shard_config.instances,
        "federation_senders": worker.federation_shard_config.instances,
        "listeners": [listener(x) for x in (config.server.listeners if main else worker.worker_listeners)],
        "other_listeners": len(worker.worker_listeners if main else config.server.listeners),
        "database": database(config),
        "redis": {
            "enabled": config.redis.redis_enabled,
            "path": config.redis.redis_path,
            "host": config.redis.redis_host,
            "port": config.redis.redis_port,
            "dbid": config.redis.redis_dbid,
            "password": config.redis.redis_password,
        },
        "server_name": config.server.server_name,
        "public_baseurl": config.server.public_baseurl,
        "report_stats": config.metrics.report_stats,
        "enable_metrics": config.metrics.enable_metrics,
        "whitelist": config.federation.federation_domain_whitelist,
        "key_servers": [server.server_name for server in config.key.key_servers],
        "registration": [
            bool(config.registration.enable_registration),
            bool(config.registration.enable_registration_without_verification),
        ],
        "secrets": {
            "signing_key": [f"{key.alg}:{key.version}" for key in config.key.signing_key],
            "macaroon": config.key.macaroon_secret_key.decode(),
            "form": config.key.form_secret,
            "registration": config.registration.registration_shared_secret,
            "replication": worker.worker_replication_secret,
        },
        "global_factor": config.caches.global_factor,
        "cache_factors": config.caches.cache_factors,
        "msc4306": config.experimental.msc4306_enabled,
        "url_previews": media.url_preview_enabled,
        "media": None,
    }
    if media.can_load_media_repo:
        result["media"] = {
            "background": media.media_instance_running_background_jobs,
            "store": media.media_store_path,
            "max_upload_size": media.max_upload_size,
        }
        if media.url_preview_enabled:
            blocked = media.url_preview_ip_range_blocklist
            probes = (
                "10.1.2.3 127.0.0.1 0.0.0.0 169.254.169.254 255.255.255.255 ::1 :: fd00::1 fe80::1 ::ffff:10.0.0.1 "
                "64:ff9b:1::1 1.1.1.1 2606:4700::1111"
            )
            result["media"]["reachable"] = [ip for ip in probes.split() if ip not in blocked]
    return result


def load(job):
    """One process: what its configuration says, and which keys nothing asked for."""
    directory = job["directory"]
    before = sorted(os.listdir(directory))
    printed = io.StringIO()
    stderr, sys.stderr = sys.stderr, printed
    try:
        config, reads = parse(job["module"], job["args"])
        shared, own = job["args"][1::2]
        result = {
            "facts": facts(config, job["module"] == "synapse.app.homeserver"),
            "shared_unread": unread(shared, reads),
            "own_unread": unread(own, reads),
        }
    except (Exception, SystemExit) as e:
        return {"error": f"{type(e).__name__}: {e}\n{printed.getvalue()}"}
    finally:
        sys.stderr = stderr
    if sorted(os.listdir(directory)) != before:
        return {"error": f"Synapse wrote files of its own into {directory}"}
    return result


def main():
    signal.alarm(540)
    request = json.load(sys.stdin)
    # Prints of Synapse's own must not get into the answer.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    result = {}
    if "yaml" in request:
        with open(request["yaml"]) as f:
            text = f.read()
        result["yaml"] = [yaml.load(text, loader) for loader in (yaml.SafeLoader, yaml.CSafeLoader)]
    if "jobs" in request:
        # Imported once for all: it takes longer than everything else.
        import synapse.app.generic_worker
        import synapse.app.homeserver  # noqa: F401

        with multiprocessing.get_context("fork").Pool(os.cpu_count()) as pool:
            result["jobs"] = pool.map(load, request["jobs"], chunksize=8)
    json.dump(result, answer)
    answer.flush()


if __name__ == "__main__":
    main()
