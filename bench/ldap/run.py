#!/usr/bin/env python3
"""Binds and searches a second through the LDAP proxy, HAProxy in TCP mode, lloadd, and nothing at all, side by side.

    cargo build --release && bench/ldap/run.py [--seconds 3] [--rounds 5] [--program target/release/matrix-stack]

Two slapd servers of its own stand behind each. The rounds of all are interleaved, so that whatever else the machine does
meets them alike; medians are printed, with the ratio to HAProxy. `lloadd` is measured where slapd brings its module.
"""

import argparse
import os
import pathlib
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

BASE = "dc=example,dc=org"
USER = f"uid=alice,ou=people,{BASE}"
SLAPD = shutil.which("slapd", path=os.environ["PATH"] + ":/usr/sbin")
HAPROXY = shutil.which("haproxy", path=os.environ["PATH"] + ":/usr/sbin")
LLOADD = pathlib.Path("/usr/lib/ldap/lloadd.so")
LDIF = f"""dn: {BASE}
objectClass: dcObject
objectClass: organization
dc: example
o: example

dn: ou=people,{BASE}
objectClass: organizationalUnit
ou: people

dn: {USER}
objectClass: inetOrgPerson
uid: alice
cn: alice
sn: alice
mail: alice@example.org
userPassword: alice-secret
"""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(port, process):
    for _ in range(500):
        if process.poll() is not None:
            sys.exit(f"{process.args[0]} ended with {process.returncode}")
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.02)
    sys.exit(f"{process.args[0]} does not listen")


def start(arguments, port, log):
    process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    wait_for(port, process)
    return process


def slapd(directory, log):
    data = directory / "data"
    data.mkdir(parents=True)
    schemas = "".join(f"include /etc/ldap/schema/{name}.schema\n" for name in ("core", "cosine", "inetorgperson"))
    conf = directory / "slapd.conf"
    conf.write_text(
        f"{schemas}modulepath /usr/lib/ldap\nmoduleload back_mdb\npidfile {directory}/pid\ndatabase mdb\n"
        f"suffix {BASE}\ndirectory {data}\nmaxsize 16777216\nindex uid eq\n"
    )
    (directory / "data.ldif").write_text(LDIF)
    subprocess.run(["slapadd", "-f", conf, "-l", directory / "data.ldif"], check=True, stdout=log, stderr=log,
                   env={**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin"})
    port = free_port()
    return start([SLAPD, "-f", conf, "-d", "0", "-h", f"ldap://127.0.0.1:{port}"], port, log), port


def proxies(directory, servers, program, log):
    """Name, process and port of each."""
    port = free_port()
    conf = directory / "ldap.yaml"
    lines = "".join(f'  - {{url: "ldap://127.0.0.1:{server}"}}\n' for server in servers)
    conf.write_text(f"listen: {{ldap: '127.0.0.1:{port}'}}\naccess_log: 'off'\nservers:\n{lines}")
    yield "matrix-stack", start([program, "--config", conf, "serve", "ldap"], port, log), port
    if HAPROXY:
        port = free_port()
        conf = directory / "haproxy.cfg"
        lines = "".join(f"  server s{server} 127.0.0.1:{server} check\n" for server in servers)
        conf.write_text(
            "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1m\n  timeout server 1m\n"
            f"listen ldap\n  bind 127.0.0.1:{port}\n  balance roundrobin\n  option ldap-check\n{lines}"
        )
        yield "HAProxy", start([HAPROXY, "-db", "-f", conf], port, log), port
    if LLOADD.exists():
        port = free_port()
        conf = directory / "lloadd.conf"
        lines = "".join(
            f"backend-server uri=ldap://127.0.0.1:{server} numconns=10 bindconns=10 retry=1000\n" for server in servers
        )
        conf.write_text(
            f"modulepath /usr/lib/ldap\nmoduleload lloadd.so\npidfile {directory}/lloadd.pid\nbackend lload\n"
            f"listen ldap://127.0.0.1:{port}\ntier roundrobin\n{lines}"
        )
        yield "lloadd", start([SLAPD, "-f", conf, "-d", "0", "-h", f"ldap://127.0.0.1:{free_port()}"], port, log), port


def tlv(tag, content):
    length = len(content)
    return bytes([tag, length] if length < 128 else [tag, 0x82, length >> 8, length & 255]) + content


def message(op):
    return tlv(0x30, b"\x02\x01\x01" + op)


BIND = message(tlv(0x60, b"\x02\x01\x03" + tlv(4, USER.encode()) + tlv(0x80, b"alice-secret")))
SEARCH = message(
    tlv(0x63, tlv(4, BASE.encode()) + b"\x0a\x01\x02\x0a\x01\x00\x02\x01\x00\x02\x01\x00\x01\x01\x00"
        + tlv(0xA3, tlv(4, b"uid") + tlv(4, b"alice")) + tlv(0x30, tlv(4, b"mail")))
)


def ask(connection, request, done):
    """Sends a request and reads until the message that ends it."""
    connection.sendall(request)
    data = b""
    while True:
        piece = connection.recv(65536)
        if not piece:
            sys.exit("the connection was closed")
        data += piece
        # Every message here is shorter than 128 bytes, so each head is two bytes long.
        while len(data) >= 2 and len(data) >= 2 + data[1]:
            whole, data = data[: 2 + data[1]], data[2 + data[1] :]
            if whole[5] == done:
                # The code stands behind the operation's head.
                if whole[9] != 0:
                    sys.exit(f"result code {whole[9]}")
                return


def client(port, kind, end, out):
    """What one client does until the end; each operation's seconds."""
    connection = None
    while time.perf_counter() < end:
        begin = time.perf_counter()
        if kind == "login":
            # As Synapse does it: a connection for each bind.
            connection = socket.create_connection(("127.0.0.1", port))
        elif connection is None:
            connection = socket.create_connection(("127.0.0.1", port))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            ask(connection, BIND, 0x61)
            begin = time.perf_counter()
        if kind == "search":
            ask(connection, SEARCH, 0x65)
        else:
            ask(connection, BIND, 0x61)
        out.append(time.perf_counter() - begin)
        if kind == "login":
            connection.close()


def cpu(process):
    if process is None:
        return 0.0
    fields = pathlib.Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(port, process, kind, clients, seconds):
    """Operations a second, the median in microseconds, and the proxy's CPU in microseconds for each operation."""
    times = [[] for _ in range(clients)]
    before, begin = cpu(process), time.perf_counter()
    threads = [threading.Thread(target=client, args=(port, kind, begin + seconds, out)) for out in times]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - begin
    every = [one for out in times for one in out]
    return len(every) / took, statistics.median(every) * 1e6, (cpu(process) - before) / len(every) * 1e6


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seconds", type=float, default=3)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--program", default="target/release/matrix-stack")
    given = arguments.parse_args()
    if not SLAPD:
        sys.exit("slapd is missing: apt install slapd ldap-utils")
    running = []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory() as directory:
        directory = pathlib.Path(directory)
        try:
            with open(directory / "log", "wb") as log:
                servers = []
                for name in ("one", "two"):
                    process, port = slapd(directory / name, log)
                    running.append(process)
                    servers.append(port)
                peers = [("direct", None, servers[0])]
                for peer in proxies(directory, servers, given.program, log):
                    running.append(peer[1])
                    peers.append(peer)
                results = {}
                for _ in range(given.rounds):
                    for kind, clients in (("login", 8), ("bind", 8), ("search", 8), ("search", 1)):
                        for name, process, port in peers:
                            result = measure(port, process, kind, clients, given.seconds)
                            results.setdefault((kind, clients, name), []).append(result)
        finally:
            for process in running:
                process.terminate()
            for process in running:
                process.wait()
    print("| what | clients | through | a second | of HAProxy's | median µs | CPU µs each |\n|---|---|---|---|---|---|---|")
    for (kind, clients, name), rounds in results.items():
        rate, median, used = (statistics.median(column) for column in zip(*rounds))
        beside = results.get((kind, clients, "HAProxy"))
        ratio = ""
        if beside:
            # Round by round, since the machine's moods last longer than one.
            ratio = f"{statistics.median(a[0] / b[0] for a, b in zip(rounds, beside)):.2f}"
        print(f"| {kind} | {clients} | {name} | {rate:.0f} | {ratio} | {median:.0f} | {used:.0f} |")


if __name__ == "__main__":
    main()
