#!/usr/bin/env python3
"""Compresses generated databases with matrix-stack and with rust-synapse-compress-state, and compares.

    cargo build --release -p matrix-stack      (or --example compress of matrix-stack-compress-state, for --program)
    bench/compress/run.py --peer DIR --postgres BIN --schema DIR [--rows 1000000] [--rooms 1]

--peer is the directory of `synapse_compress_state` and `synapse_auto_compressor`, built from their published source. --postgres
is the directory of `initdb` and `postgres`, and --schema is `synapse/storage/schema` of an installed Synapse; `matrix-stack
install` brings both. The server runs in a temporary directory with its standard settings. For each side the same database
is copied; time is from start to end, memory is the most that the process had resident, and every group of a sample is
resolved by Synapse's own query before and after.
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
PROGRAM = HERE.parent.parent / "target/release/matrix-stack"

RESOLVE = """
WITH RECURSIVE sgs(state_group) AS (
  VALUES({group}::bigint) UNION ALL
  SELECT prev_state_group FROM state_group_edges e, sgs s WHERE s.state_group = e.state_group)
SELECT md5(string_agg(type || ' ' || state_key || ' ' || event_id, ',' ORDER BY type, state_key)) FROM (
  SELECT DISTINCT ON (type, state_key) type, state_key, event_id FROM state_groups_state
  WHERE state_group IN (SELECT state_group FROM sgs) ORDER BY type, state_key, state_group DESC) s
"""


class Server:
    def __init__(self, bin_dir):
        self.bin = pathlib.Path(bin_dir)
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="ms-bench-compress-"))
        self.become = None
        if os.geteuid() == 0:
            # PostgreSQL refuses to run as root.
            os.chown(self.dir, 65534, 65534)
            self.become = 65534
        os.chmod(self.dir, 0o711)
        self.run("initdb", "-D", str(self.dir / "data"), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C")
        self.process = subprocess.Popen(
            [self.bin / "postgres", "-D", self.dir / "data", "-k", self.dir, "-c", "listen_addresses=",
             "-c", "max_wal_size=8GB", "-c", "shared_buffers=512MB", "-c", "unix_socket_permissions=0777"],
            stdout=open(self.dir / "log", "w"), stderr=subprocess.STDOUT, user=self.become, group=self.become,
            extra_groups=[] if self.become else None)
        for _ in range(300):
            if self.try_psql("postgres", "SELECT 1"):
                return
            time.sleep(0.1)
        sys.exit((self.dir / "log").read_text())

    def run(self, program, *arguments):
        subprocess.run([self.bin / program, *arguments], check=True, stdout=subprocess.DEVNULL, user=self.become,
                       group=self.become, extra_groups=[] if self.become else None)

    def psql_command(self, database):
        psql = self.bin / "psql"
        return [psql if psql.exists() else "psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", self.dir, "-U",
                "postgres", "-d", database]

    def try_psql(self, database, sql):
        done = subprocess.run([*self.psql_command(database), "-c", sql], capture_output=True, text=True)
        return done.stdout if done.returncode == 0 else None

    def psql(self, database, sql):
        return subprocess.run([*self.psql_command(database), "-c", sql], check=True, capture_output=True, text=True).stdout

    def script(self, database, text):
        subprocess.run(self.psql_command(database), input=text, check=True, text=True, stdout=subprocess.DEVNULL)

    def url(self, database):
        return f"postgresql://postgres@/{database}?host={str(self.dir).replace('/', '%2F')}"

    def end(self):
        self.process.terminate()
        self.process.wait()
        shutil.rmtree(self.dir)


def schema(directory):
    """The tables for state, as Synapse makes them, with what comes after its last full schema."""
    state = pathlib.Path(directory) / "state"
    full = max(state.glob("full_schemas/*"), key=lambda path: int(path.name))
    text = [(full / "full.sql.postgres").read_text()]
    for delta in sorted(state.glob("delta/*"), key=lambda path: int(path.name)):
        for file in sorted(delta.glob("*.sql*")) if int(delta.name) > int(full.name) else []:
            if file.name.endswith((".sql", ".sql.postgres")) and "background_updates" not in file.read_text():
                text.append(file.read_text())
    identity = "BIGINT PRIMARY KEY GENERATED ALWAYS AS IDENTITY"
    return "\n".join(text).replace("$%AUTO_INCREMENT_PRIMARY_KEY%$", identity)


def measured(command, log):
    """Seconds and the most KiB that were resident."""
    started = time.monotonic()
    with open(log, "w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - started
    if status:
        sys.exit(f"{command} failed: {pathlib.Path(log).read_text()[-2000:]}")
    return seconds, usage.ru_maxrss


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True)
    parser.add_argument("--postgres", required=True)
    parser.add_argument("--schema", required=True)
    parser.add_argument("--program", default=PROGRAM)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rooms", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sample", type=int, default=200)
    arguments = parser.parse_args()
    server = Server(arguments.postgres)
    try:
        compare(server, arguments)
    finally:
        server.end()


def compare(server, arguments):
    server.psql("postgres", "CREATE DATABASE original")
    server.script("original", schema(arguments.schema))
    generate = subprocess.Popen([sys.executable, HERE / "generate.py", "--rows", str(arguments.rows), "--rooms",
                                 str(arguments.rooms), "--seed", str(arguments.seed)], stdout=subprocess.PIPE)
    subprocess.run(server.psql_command("original"), stdin=generate.stdout, check=True, stdout=subprocess.DEVNULL)
    if generate.wait():
        sys.exit("the generator failed")
    count = lambda database: int(server.psql(database, "SELECT count(*) FROM state_groups_state"))
    last = int(server.psql("original", "SELECT max(id) FROM state_groups"))
    sample = [1 + n * last // arguments.sample for n in range(arguments.sample)]
    states = lambda database: [server.psql(database, RESOLVE.format(group=group)) for group in sample]
    truth = states("original")
    peer = pathlib.Path(arguments.peer)
    if arguments.rooms == 1:
        # Its program for one room, which begins with all of it in memory.
        peer_command = lambda url: [peer / "synapse_compress_state", "-p", url, "-r", "!room0:example.org", "-c"]
        own = ["--room", "!room0:example.org"]
    else:
        # As its manual recommends, until it finds no more to do.
        peer_command = lambda url: [peer / "synapse_auto_compressor", "-p", url, "-c", "500", "-n", "10000000"]
        own = []
    result = {"rows": count("original"), "groups": int(server.psql("original", "SELECT count(*) FROM state_groups"))}
    for name in ["matrix-stack", "peer"]:
        database = name.replace("-", "_")
        server.psql("postgres", f"CREATE DATABASE {database} TEMPLATE original")
        server.psql(database, "VACUUM ANALYZE")
        server.psql("postgres", "CHECKPOINT")
        url = server.url(database)
        # The example of the crate takes nothing but the URL.
        words = ["compress-state", "--database-url", url, *own] if pathlib.Path(arguments.program).name != "compress" else [url]
        command = [arguments.program, *words] if name == "matrix-stack" else peer_command(url)
        seconds, memory = measured(command, server.dir / f"{name}.log")
        log = (server.dir / f"{name}.log").read_text()
        hops = server.psql(database, """
            WITH RECURSIVE way(id, hops) AS (
              SELECT id, 0 FROM state_groups g WHERE NOT EXISTS (SELECT FROM state_group_edges e WHERE e.state_group = g.id)
              UNION ALL SELECT e.state_group, hops + 1 FROM state_group_edges e JOIN way ON e.prev_state_group = way.id)
            SELECT max(hops) FROM way""")
        result[name] = {"seconds": round(seconds, 2), "peak_kib": memory, "rows_left": count(database), "hops": int(hops),
                        "same": states(database) == truth}
        print(name, result[name], re.sub(r"\s+", " ", log)[-300:], file=sys.stderr, flush=True)
        server.psql("postgres", f"DROP DATABASE {database}")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
