"""A stand-in for the Matrix Authentication Service, with its command line, configuration and addresses.

It is as much of MAS as Synapse and clients that know nothing of OAuth can tell from the outside:
discovery, token introspection (RFC 7662), and the login, refresh and logout of the client-server
API. Like MAS it reads its own configuration file, connects to its own database before it is
healthy, and tells Synapse of users and devices. Anybody who says the password `NAME's password`
is let in. Tokens live for the configured seconds and say nothing of their users.
"""

from __future__ import annotations

import hmac
import json
import os
import re
import secrets
import socket
import socketserver
import sys
import threading
import time
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psycopg2
import yaml

DEVICE = "urn:matrix:client:device:"


class Refusal(Exception):
    def __init__(self, status: int, errcode: str, **more: Any) -> None:
        super().__init__(errcode)
        self.status, self.answer = status, {"errcode": errcode, "error": errcode, **more}


class Service:
    """Who is logged in, by tokens."""

    def __init__(self, config: dict[str, Any], lifetime: float) -> None:
        self.base = config["http"]["public_base"]
        self.homeserver = config["matrix"]["endpoint"]
        self.server_name = config["matrix"]["homeserver"]
        self.secret = Path(config["matrix"]["secret_file"]).read_text().strip()
        self.lifetime = lifetime
        self.lock = threading.Lock()
        # Access tokens with user, device and end; refresh tokens with user and device.
        self.access: dict[str, tuple[str, str, float]] = {}
        self.refresh: dict[str, tuple[str, str]] = {}

    def tell(self, what: str, **body: Any) -> None:
        """Tells Synapse, as MAS does: through the address that its configuration names."""
        request = urllib.request.Request(
            f"{self.homeserver}_synapse/mas/{what}",
            json.dumps(body).encode(),
            {"Authorization": f"Bearer {self.secret}", "Content-Type": "application/json"},
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=60) as answer:
            answer.read()

    def issue(self, user: str, device: str) -> dict[str, Any]:
        access, refresh = f"mct_{secrets.token_urlsafe(24)}", f"mcr_{secrets.token_urlsafe(24)}"
        with self.lock:
            self.access[access] = (user, device, time.monotonic() + self.lifetime)
            self.refresh[refresh] = (user, device)
        return {
            "access_token": access,
            "refresh_token": refresh,
            "expires_in_ms": int(self.lifetime * 1000),
            "device_id": device,
            "user_id": f"@{user}:{self.server_name}",
        }

    def login(self, body: dict[str, Any]) -> dict[str, Any]:
        user = body["identifier"]["user"]
        if not hmac.compare_digest(body["password"], f"{user}'s password"):
            raise Refusal(403, "M_FORBIDDEN")
        device = secrets.token_hex(5).upper()
        self.tell("provision_user", localpart=user, set_displayname=user)
        self.tell("upsert_device", localpart=user, device_id=device)
        return self.issue(user, device)

    def renew(self, body: dict[str, Any]) -> dict[str, Any]:
        with self.lock:
            known = self.refresh.pop(body["refresh_token"], None)
        if known is None:
            raise Refusal(401, "M_UNKNOWN_TOKEN")
        return self.issue(*known)

    def logout(self, token: str) -> dict[str, Any]:
        with self.lock:
            known = self.access.pop(token, None)
            if known:
                of_device = [t for t, (u, d, _) in self.access.items() if (u, d) == known[:2]]
                for other in of_device:
                    del self.access[other]
        if known is None:
            raise Refusal(401, "M_UNKNOWN_TOKEN")
        self.tell("delete_device", localpart=known[0], device_id=known[1])
        return {}

    def introspect(self, token: str) -> dict[str, Any]:
        with self.lock:
            known = self.access.get(token)
        left = known[2] - time.monotonic() if known else 0
        if known is None or left <= 0:
            return {"active": False}
        user, device, _ = known
        return {
            "active": True,
            "username": user,
            "sub": user,
            "device_id": device,
            "scope": f"urn:matrix:client:api:* {DEVICE}{device}",
            "token_type": "access_token",
            # MAS says whole seconds, and none where nothing is left.
            "expires_in": max(1, int(left)),
        }

    def discovery(self) -> dict[str, Any]:
        base = self.base
        return {
            "issuer": base,
            "authorization_endpoint": f"{base}authorize",
            "token_endpoint": f"{base}oauth2/token",
            "introspection_endpoint": f"{base}oauth2/introspect",
            "revocation_endpoint": f"{base}oauth2/revoke",
            "registration_endpoint": f"{base}oauth2/registration",
            "account_management_uri": f"{base}account/",
            "response_types_supported": ["code"],
        }


def handler(service: Service, private: bool) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def address_string(self) -> str:
            return "somebody"

        def log_message(self, *_: Any) -> None:
            pass

        def answer(self, status: int, body: Any) -> None:
            text = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def bearer(self) -> str:
            return self.headers.get("Authorization", "").removeprefix("Bearer ")

        def decide(self) -> Any:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length)
            path = urllib.parse.urlsplit(self.path).path
            if private:
                return {"status": "ok"} if path == "/health" else None
            match self.command, re.sub("^/_matrix/client/[^/]+/", "compat:", path):
                case "GET", "/.well-known/openid-configuration":
                    return service.discovery()
                case "GET", page if page.startswith("/account/"):
                    return {"page": page, "host": self.headers.get("Host")}
                case "POST", "/oauth2/introspect":
                    if not hmac.compare_digest(self.bearer(), service.secret):
                        raise Refusal(401, "invalid_client")
                    return service.introspect(urllib.parse.parse_qs(body.decode())["token"][0])
                case "GET", "compat:login":
                    return {"flows": [{"type": "m.login.password"}]}
                case "POST", "compat:login":
                    return service.login(json.loads(body))
                case "POST", "compat:refresh":
                    return service.renew(json.loads(body))
                case "POST", "compat:logout":
                    return service.logout(self.bearer())
            return None

        def do_GET(self) -> None:
            try:
                found = self.decide()
                if found is None:
                    self.answer(404, {"errcode": "M_UNRECOGNIZED"})
                else:
                    self.answer(200, found)
            except Refusal as refusal:
                self.answer(refusal.status, refusal.answer)

        do_POST = do_GET

    return Handler


class UnixServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


class TcpServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def check_database(config: dict[str, Any]) -> None:
    """Makes a table, as MAS's migrations would."""
    database = config["database"]
    connection = psycopg2.connect(
        host=database["socket"],
        port=database["port"],
        user=database["username"],
        dbname=database["database"],
        password=Path(database["password_file"]).read_text().strip(),
    )
    with connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE IF NOT EXISTS stand_in (started timestamptz)")
        cursor.execute("INSERT INTO stand_in VALUES (now())")
    connection.close()


def check_secrets(config: dict[str, Any]) -> None:
    bytes.fromhex(Path(config["secrets"]["encryption_file"]).read_bytes().decode("ascii"))
    for key in config["secrets"]["keys"]:
        # Which of the two it is, only a library of its own could tell.
        assert Path(key["key_file"]).read_text().startswith("-----BEGIN PRIVATE KEY-----\n")


def main() -> None:
    server, flag, file = sys.argv[1:]
    assert (server, flag) == ("server", "--config"), sys.argv
    config = yaml.safe_load(Path(file).read_text())
    check_secrets(config)
    check_database(config)
    service = Service(config, float(os.environ["TOKEN_SECONDS"]))
    for listener in config["http"]["listeners"]:
        for bind in listener["binds"]:
            of = handler(service, listener["name"] == "private")
            if "socket" in bind:
                one: Any = UnixServer(bind["socket"], of)
                os.chmod(bind["socket"], int(bind["mode"], 8))
            else:
                host, port = bind["address"].rsplit(":", 1)
                socket.inet_aton(host)
                one = TcpServer((host, int(port)), of)
            threading.Thread(target=one.serve_forever).start()


if __name__ == "__main__":
    main()
