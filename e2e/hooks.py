"""Alerts into rooms of a real Synapse while everything between them fails.

The service is killed at random moments and started again, connections to the homeserver break after a request and before its
answer, and the homeserver is away for a while. In the end each alert is in its room once, in the order in which it was sent.
Then a real Alertmanager sends, and dead letters are tried again. Standard library alone.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

ROOMS = 4
CLIENT = "/_matrix/client/v3"


def q(part: str) -> str:
    return urllib.parse.quote(part, safe="")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def until(what: str, seconds: float, holds: Any) -> Any:
    """Waits until `holds` gives something true."""
    deadline = time.monotonic() + seconds
    while True:
        found = holds()
        if found:
            return found
        if time.monotonic() > deadline:
            raise SystemExit(f"not in {seconds:.0f} s: {what}")
        time.sleep(0.1)


class Account:
    """Somebody on the homeserver."""

    def __init__(self, url: str, name: str) -> None:
        self.url = url
        self.token = ""
        body = {"username": name, "password": f"{name}'s password", "auth": {"type": "m.login.dummy"}}
        made = self.ask("POST", "/register", body)
        self.user, self.token = made["user_id"], made["access_token"]

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        request = urllib.request.Request(self.url + CLIENT + path, method=method)
        if self.token:
            request.add_header("Authorization", f"Bearer {self.token}")
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(request, data, timeout=60) as answer:
            return json.load(answer)

    def room(self, **options: Any) -> str:
        return self.ask("POST", "/createRoom", {"preset": "public_chat", **options})["room_id"]

    def messages(self, room: str) -> list[Any]:
        """All messages of a room, the oldest first."""
        events: list[Any] = []
        start = ""
        while True:
            part = self.ask("GET", f"/rooms/{q(room)}/messages?dir=f&limit=500{start}")
            events += [event for event in part["chunk"] if event["type"] == "m.room.message"]
            if "end" not in part:
                return events
            start = f"&from={q(part['end'])}"


class Link:
    """What is between the service and its homeserver: it can be away, or lose answers."""

    def __init__(self, port: int) -> None:
        self.upstream = port
        self.away = False
        self.losing = 0.0
        self.lost = 0
        self.open: set[socket.socket] = set()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        while True:
            client, _ = self.listener.accept()
            if self.away:
                client.close()
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self.upstream), 30)
            except OSError:
                client.close()
                continue
            self.open |= {client, server}
            threading.Thread(target=self.pump, args=(client, server, False), daemon=True).start()
            threading.Thread(target=self.pump, args=(server, client, True), daemon=True).start()

    def pump(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        try:
            source.settimeout(None)
            while data := source.recv(65536):
                if answers and random.random() < self.losing:
                    self.lost += 1
                    break
                sink.sendall(data)
        except OSError:
            pass
        self.close(source)
        self.close(sink)

    def close(self, end: socket.socket) -> None:
        self.open.discard(end)
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        end.close()

    def go(self, away: bool) -> None:
        self.away = away
        if away:
            for end in list(self.open):
                self.close(end)


class Service:
    """`matrix-stack serve alertmanager`."""

    def __init__(self, program: str, directory: Path, matrix: str, bot: Account, rooms: dict[str, str]) -> None:
        self.program, self.directory = program, directory
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.store = directory / "store" / "hooks.sqlite"
        self.file = directory / "alertmanager.yaml"
        self.process: subprocess.Popen[bytes] | None = None
        token = directory / "token"
        token.write_text(bot.token)
        token.chmod(0o600)
        self.config = {
            "http": {"address": "127.0.0.1", "port": self.port, "metrics-enabled": True},
            "matrix": {
                "homeserver-url": matrix,
                "user-id": bot.user,
                "access-token-file": str(token),
                "room-mapping": rooms,
            },
            "templating": {
                "firing-template": "{{.Alert.Status}} {{.Alert.Labels.alertname}} {{.Alert.Annotations.number}}",
            },
            "queue": {"store": str(self.store)},
            "delivery": {"doubles-within": 3600},
        }

    def start(self) -> None:
        self.file.write_text(json.dumps(self.config))
        log = open(self.directory / "alertmanager.log", "ab")
        self.process = subprocess.Popen([self.program, "serve", "alertmanager", "--config", self.file], stderr=log)

    def ready(self) -> None:
        until("the service is ready", 60, lambda: self.is_ready())

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(self.url + "/ready", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def end(self, by: signal.Signals) -> None:
        if self.process:
            self.process.send_signal(by)
            self.process.wait(60)
            self.process = None

    def post(self, room: str, body: Any) -> int:
        request = urllib.request.Request(f"{self.url}/alerts/{q(room)}", json.dumps(body).encode(), method="POST")
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def metric(self, name: str) -> float:
        with urllib.request.urlopen(self.url + "/metrics", timeout=10) as answer:
            for line in answer.read().decode().splitlines():
                if line.startswith(name + " "):
                    return float(line.split()[1])
        raise SystemExit(f"no metric {name}")

    def hooks(self, *words: str) -> str:
        command = [self.program, "hooks", *words, "--store", str(self.store)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def notification(number: int, status: str = "firing", name: str = "Down") -> Any:
    alert = {
        "status": status,
        "labels": {"alertname": name},
        "annotations": {"number": str(number)},
        "startsAt": "2026-01-01T00:00:00Z",
        "endsAt": "2026-01-01T01:00:00Z",
        "fingerprint": f"{name}-{number}",
    }
    return {"version": "4", "groupKey": "g", "status": status, "receiver": "matrix", "alerts": [alert]}


def crashes(service: Service, link: Link, reader: Account, rooms: dict[str, str], alerts: int) -> None:
    done = threading.Event()
    tries = [0]

    def send(name: str) -> None:
        for number in range(alerts // ROOMS):
            while service.post(name, notification(number)) != 200:
                tries[0] += 1
                time.sleep(0.05)

    def trouble() -> None:
        kills = 0
        while not done.is_set():
            done.wait(random.uniform(0.5, 3.0))
            service.end(signal.SIGKILL)
            kills += 1
            service.start()
            if kills % 4 == 2:
                link.go(True)
                done.wait(random.uniform(1.0, 4.0))
                link.go(False)
        print(f"    killed {kills} times, {link.lost} answers lost, {tries[0]} requests sent again")

    link.losing = 0.03
    senders = [threading.Thread(target=send, args=(name,)) for name in rooms]
    troubles = threading.Thread(target=trouble)
    began = time.monotonic()
    for thread in [*senders, troubles]:
        thread.start()
    for thread in senders:
        thread.join()
    accepted = time.monotonic() - began
    # Most of the way is still ahead of them, and it is as bad.
    arrived = lambda: sum(len(reader.messages(room)) for room in rooms.values())
    until("most are delivered", 900, lambda: arrived() > alerts * 3 // 4)
    done.set()
    troubles.join()
    link.losing = 0.0
    service.ready()
    until("everything is delivered", 600, lambda: service.metric("matrix_stack_hooks_waiting") == 0)
    print(f"    {alerts} alerts accepted in {accepted:.1f} s, delivered in {time.monotonic() - began:.1f} s")
    for name, room in rooms.items():
        bodies = [event["content"]["body"] for event in reader.messages(room)]
        expected = [f"firing Down {number}" for number in range(alerts // ROOMS)]
        if bodies != expected:
            lost = [body for body in expected if body not in bodies]
            doubles = len(bodies) - len(set(bodies))
            raise SystemExit(f"{name}: {len(bodies)} messages for {len(expected)}: lost {lost[:5]}, {doubles} doubles")
    if json.loads(service.hooks("dead", "--json")):
        raise SystemExit(f"dead letters: {service.hooks('dead')}")


def dead_letters(service: Service, reader: Account, bot: Account) -> None:
    secret = reader.room(preset="private_chat")
    encryption = {"type": "m.room.encryption", "state_key": "", "content": {"algorithm": "m.megolm.v1.aes-sha2"}}
    encrypted = reader.room(initial_state=[encryption])
    nowhere = f"#nowhere-{time.time_ns()}:{bot.user.split(':')[1]}"
    for at, room in enumerate([secret, encrypted, nowhere]):
        if service.post(room, notification(at)) != 200:
            raise SystemExit(f"{room} is not taken")
    letters = until("three dead letters", 60, lambda: (found := json.loads(service.hooks("dead", "--json"))) and len(found) == 3 and found)
    reasons = {letter["room"]: letter["reason"] for letter in letters}
    for room, part in [(secret, "cannot join"), (encrypted, "encrypted"), (nowhere, "alias")]:
        if part not in reasons[room]:
            raise SystemExit(f"{part} is not in {reasons[room]}")
    print(service.hooks("dead"), end="")
    reader.ask("POST", f"/rooms/{q(secret)}/invite", {"user_id": bot.user})
    number = next(letter["id"] for letter in letters if letter["room"] == secret)
    service.hooks("retry", str(number))
    until("the letter arrives", 60, lambda: reader.messages(secret))
    service.hooks("retry", "--all")
    until("two are dead again", 60, lambda: len(json.loads(service.hooks("dead", "--json"))) == 2)


def edits(service: Service, reader: Account, room: str) -> None:
    service.config["delivery"]["resolved"] = "edit"
    service.file.write_text(json.dumps(service.config))
    assert service.process
    service.process.send_signal(signal.SIGHUP)
    log = service.directory / "alertmanager.log"
    until("the file is read again", 30, lambda: '"reloaded"' in log.read_text())
    # A file that is wrong changes nothing.
    service.file.write_text("http: [")
    service.process.send_signal(signal.SIGHUP)
    until("the wrong file is refused", 30, lambda: "the old one stays" in log.read_text())
    before = len(reader.messages(room))
    for status in ["firing", "resolved"]:
        if service.post("r0", notification(1, status, "Edited")) != 200:
            raise SystemExit("not taken")
    events = until("the edit arrives", 60, lambda: (found := reader.messages(room)[before:]) and len(found) == 2 and found)
    relation = events[1]["content"].get("m.relates_to", {})
    if (relation.get("rel_type"), relation.get("event_id")) != ("m.replace", events[0]["event_id"]):
        raise SystemExit(f"no edit: {events[1]['content']}")
    if events[1]["content"]["m.new_content"]["body"] != "resolved Edited 1":
        raise SystemExit(f"{events[1]['content']}")


def real_alertmanager(service: Service, directory: Path, reader: Account, room: str) -> None:
    program, tool = shutil.which("prometheus-alertmanager"), shutil.which("amtool")
    if not program or not tool:
        print("    skipped: prometheus-alertmanager and amtool are not installed")
        return
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    file = directory / "am.yml"
    hook = {"url": f"{service.url}/alerts/r0", "send_resolved": True}
    route = {"receiver": "matrix", "group_wait": "1s", "group_interval": "1s", "repeat_interval": "1h", "group_by": ["alertname"]}
    file.write_text(json.dumps({"route": route, "receivers": [{"name": "matrix", "webhook_configs": [hook]}]}))
    log = open(directory / "am.log", "wb")
    command = [program, f"--config.file={file}", f"--storage.path={directory / 'am'}", f"--web.listen-address=127.0.0.1:{port}"]
    alertmanager = subprocess.Popen([*command, "--cluster.listen-address="], stdout=log, stderr=log)
    try:
        def answers() -> bool:
            try:
                with urllib.request.urlopen(url + "/-/ready", timeout=5) as answer:
                    return answer.status == 200
            except OSError:
                return False

        until("Alertmanager is ready", 60, answers)
        before = len(reader.messages(room))
        add = [tool, "alert", "add", f"--alertmanager.url={url}", "alertname=Real", "severity=critical"]
        # While the service is away, Alertmanager sends again.
        service.end(signal.SIGTERM)
        subprocess.run([*add, "--annotation=number=7"], check=True)
        time.sleep(2.5)
        service.start()
        service.ready()
        events = until("the alert arrives", 90, lambda: reader.messages(room)[before:])
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        subprocess.run([*add, "--annotation=number=7", f"--end={now}"], check=True)
        events = until("its end arrives", 90, lambda: (found := reader.messages(room)[before:]) and len(found) > 1 and found)
        bodies = [event["content"]["body"] for event in events]
        if bodies != ["firing Real 7", "resolved Real 7"]:
            raise SystemExit(f"Alertmanager's: {bodies}")
    finally:
        alertmanager.terminate()
        alertmanager.wait(30)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", required=True)
    parser.add_argument("--url", required=True)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--alerts", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    print(f"    seed {arguments.seed}")
    arguments.directory.mkdir(parents=True, exist_ok=True)
    reader = Account(arguments.url, f"reader{os.getpid()}")
    bot = Account(arguments.url, f"bot{os.getpid()}")
    rooms = {f"r{at}": reader.room() for at in range(ROOMS)}
    link = Link(urllib.parse.urlparse(arguments.url).port or 80)
    service = Service(arguments.program, arguments.directory, f"http://127.0.0.1:{link.port}", bot, rooms)
    try:
        service.start()
        service.ready()
        crashes(service, link, reader, rooms, arguments.alerts)
        dead_letters(service, reader, bot)
        real_alertmanager(service, arguments.directory, reader, rooms["r0"])
        edits(service, reader, rooms["r0"])
        assert service.process
        status = Path(f"/proc/{service.process.pid}/status").read_text()
        print("    " + next(line for line in status.splitlines() if line.startswith("VmRSS")))
    finally:
        service.end(signal.SIGTERM)


main()
