#!/usr/bin/env python3
"""Start, restart and memory figures of a whole stack on this machine.

    cargo build --release && python3 bench/startup.py [--preset full] [--rounds 3] [--idle 30]

Packages are installed first and not counted. Each round starts from an empty data directory, waits until every
process is healthy, lets the stack idle, sums the proportional set size (PSS) of all its processes, restarts a few
workers one at a time, stops, starts once more from the data that is there, and stops. Nothing is kept.
The figures of all rounds are printed, and the median.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
WORKERS = ["sync_1", "typing_1", "event_persister_1", "room_2", "federation_sender_1"]


def cpu_seconds(pids):
    """User and system time that these processes have used so far."""
    ticks = os.sysconf("SC_CLK_TCK")
    total = 0
    for pid in pids:
        try:
            fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        total += (int(fields[11]) + int(fields[12])) / ticks
    return total


def pss_of_tree(root):
    """PSS in bytes of a process and all that descend from it, by the name of the program."""
    children = {}
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    by_kind, queue, pids = {}, [root], []
    while queue:
        pid = queue.pop()
        queue.extend(children.get(pid, []))
        pids.append(pid)
        try:
            rollup = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text()
            name = os.path.basename(os.readlink(f"/proc/{pid}/exe"))
        except OSError:
            continue
        for line in rollup.splitlines():
            if line.startswith("Pss:"):
                kind = "synapse" if name.startswith("python") else name
                by_kind[kind] = by_kind.get(kind, 0) + int(line.split()[1]) * 1024
    return by_kind, pids


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default=str(ROOT / "target/release/matrix-stack"))
    parser.add_argument("--preset", default="full")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--idle", type=float, default=30, help="seconds to idle before memory is read")
    parser.add_argument("--listen", default="127.0.0.1:18408")
    arguments = parser.parse_args()
    if not os.path.exists(arguments.binary):
        sys.exit(f"there is no {arguments.binary}; run `cargo build --release` first")

    # PostgreSQL drops root's rights and has to be able to enter its directory.
    scratch = pathlib.Path(tempfile.mkdtemp(prefix="matrix-stack-bench-"))
    scratch.chmod(0o755)
    stack_file = scratch / "stack.yaml"
    stack_file.write_text(
        f"server_name: localhost\npreset: {arguments.preset}\nlisten: {{address: '{arguments.listen}'}}\n"
    )

    def run(*words):
        command = [arguments.binary, words[0], "--config", str(stack_file), "--data-dir", str(data), *words[1:]]
        begun = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, timeout=900)
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
        return time.monotonic() - begun, done

    figures = {}

    def note(name, value, unit):
        figures.setdefault((name, unit), []).append(value)
        print(f"  {name}: {value:.2f} {unit}", flush=True)

    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    print(f"{cores} cores, {memory:.0f} GiB, preset {arguments.preset}, {arguments.rounds} rounds")
    data = scratch / "warm"
    try:
        run("up", "--detach")  # installs the packages and fills the page cache
        run("down")
        for number in range(1, arguments.rounds + 1):
            print(f"round {number}")
            data = scratch / f"round{number}"
            note("from an empty data directory to all healthy", run("up", "--detach")[0], "s")
            time.sleep(arguments.idle)
            status = json.loads(run("status", "--json")[1].stdout)
            by_kind, pids = pss_of_tree(status["pid"])
            note("processes", len(pids), "")
            note("memory in all, idle (PSS)", sum(by_kind.values()) / 2**20, "MiB")
            for kind, size in sorted(by_kind.items(), key=lambda item: -item[1]):
                note(f"  of that {kind}", size / 2**20, "MiB")
            before, since = cpu_seconds(pids), time.monotonic()
            time.sleep(5)
            note("processor idle", 100 * (cpu_seconds(pids) - before) / (time.monotonic() - since), "% of a core")
            names = {process["name"] for process in status["processes"]}
            for worker in [worker for worker in WORKERS if worker in names]:
                done = run("restart", worker)[1]
                note("one worker restarted, signal to healthy", float(done.stderr.split()[-2]), "s")
            note("stop", run("down")[0], "s")
            note("later start to all healthy", run("up", "--detach")[0], "s")
            run("down")
            shutil.rmtree(data, ignore_errors=True)
    finally:
        if (data / "run/control.sock").exists():
            run("down")
        shutil.rmtree(scratch, ignore_errors=True)
    print("median")
    for (name, unit), values in figures.items():
        spread = f" (from {min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
        print(f"  {name}: {statistics.median(values):.2f} {unit}{spread}")


if __name__ == "__main__":
    main()
