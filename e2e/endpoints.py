#!/usr/bin/env python3
"""Calls every endpoint of the routing table on a running stack, and compares what two stacks answered.

    endpoints.py probe --url URL --user NAME --password-file FILE --routes routes.json --access-log FILE --out a.json
                       --peer-url URL --peer-key FILE
    endpoints.py compare a.json b.json

`routes.json` is what `matrix-stack routes list --json` prints. Each endpoint is called once: clients' with the token of an
administrator, servers' with the signature of another server (`peer`), where somebody of the same name is in a room of this one. The
values make sense where the endpoint changes nothing that a later call needs; most others answer with an error such as
M_MISSING_PARAM, which only a process that serves the endpoint gives. `probe` fails where an answer is 404
M_UNRECOGNIZED, or where the router's access log says that another process answered than the table promises. `compare` fails where
two stacks answered with another status or error code: a stack of many processes must answer as one process does.
"""

import argparse
import collections
import http.client
import json
import pathlib
import sys
import time
import urllib.parse

from steps import Keys, unbase64

TIMEOUT = 60

# Calls that end a session or an account: each is made by an account of its own, which the administrator adds.
ENDS_THE_SESSION = ("/logout", "/account/deactivate", "/account/password")
LEAVES_THE_ROOM = ("/knock/", "/join/", "/leave/", "/forget/", "/upgrade/")
# Where one process answers better than many do, and Synapse itself is why.
KNOWN = {
    # Main looks first whether it knows a server to knock at; a worker asks main to knock, and main then finds none.
    ("/knock/{room_identifier}", 502, 404),
}


class Server:
    def __init__(self, url):
        self.host = urllib.parse.urlsplit(url).netloc
        self.connection = http.client.HTTPConnection(self.host, timeout=TIMEOUT)

    def call(self, method, target, token=None, body=None, peer=None):
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        payload = None
        if method in ("POST", "PUT"):
            body = {} if body is None else body
            payload = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        if peer:
            headers["Authorization"] = peer.authorization(method, target, body if payload else None)
        try:
            self.connection.request(method, target, payload, headers)
            response = self.connection.getresponse()
            text = response.read()
        except (http.client.HTTPException, OSError):
            self.connection.close()
            raise
        try:
            answer = json.loads(text) if text else {}
        except ValueError:
            answer = {}
        return response.status, answer if isinstance(answer, dict) else {}

    def need(self, method, target, token=None, body=None):
        status, answer = self.call(method, target, token, body)
        if status != 200:
            sys.exit(f"{method} {target} answered {status} {answer}")
        return answer


class Peer:
    """Another server, in whose name requests are signed."""

    def __init__(self, url, key_file):
        self.server = Server(url)
        self.name = self.server.need("GET", "/_matrix/key/v2/server")["server_name"]
        algorithm, version, seed = pathlib.Path(key_file).read_text().split()
        self.key_name = f"{algorithm}:{version}"
        self.keys = Keys(unbase64(seed))
        self.destination = None

    def authorization(self, method, target, body):
        signed = {"method": method, "uri": target, "origin": self.name, "destination": self.destination}
        if body is not None:
            signed["content"] = body
        signature = self.keys.sign(signed, self.name, self.key_name)["signatures"][self.name][self.key_name]
        return (
            f'X-Matrix origin="{self.name}",destination="{self.destination}",key="{self.key_name}",sig="{signature}"'
        )


def is_for_servers(template):
    return template.startswith(("/_matrix/federation/", "/_matrix/key/"))


def log_in(server, user, password):
    body = {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": user}, "password": password}
    return server.need("POST", "/_matrix/client/v3/login", body=body)


def sample_values(server, user, password, peer):
    """What stands for each parameter of a template: things that exist, where asking for them changes nothing."""
    me = log_in(server, user, password)
    token = me["access_token"]

    def make_room(preset):
        """The IDs of a new room and of a message in it."""
        room = server.need("POST", "/_matrix/client/v3/createRoom", token, {"preset": preset})["room_id"]
        path = f"/_matrix/client/v3/rooms/{urllib.parse.quote(room)}/send/m.room.message/first"
        event = server.need("PUT", path, token, {"msgtype": "m.text", "body": "hello"})["event_id"]
        return room, event

    room, event = make_room("private_chat")
    # One that both servers are in, for what servers ask. Clients' requests change the other one.
    common_room, common_event = make_room("public_chat")
    name = me["user_id"].split(":", 1)[1]
    peer.destination = name
    guest = log_in(peer.server, user, password)
    path = f"/_matrix/client/v3/join/{urllib.parse.quote(common_room)}?via={name}&server_name={name}"
    peer.server.need("POST", path, guest["access_token"])
    picture = server.need("POST", "/_matrix/media/v3/upload", token)["content_uri"]
    since = server.need("GET", "/_matrix/client/v3/sync?timeout=0", token)["next_batch"]
    # The profile's field is one that rooms are not told of: three such changes at once are too many for Synapse (500, "Expected
    # at most one task to cancel"), and displayname and avatar_url have endpoints of their own.
    values = {
        "since": since, "room_id": room, "room_identifier": room, "user_id": me["user_id"], "target_user_id": me["user_id"],
        "event_id": event, "parent_id": event, "server_name": name, "server": name, "destination": name,
        "room_alias": f"#nowhere:{name}", "event_type": "m.room.topic", "account_data_type": "org.example.probe",
        "stagetype": "m.login.dummy", "receipt_type": "m.read", "relation_type": "m.annotation",
        "message_type": "org.example.probe", "field_name": "org.example.probe", "filter_id": "0", "tag": "u.probe",
        "version": "1", "medium": "email", "address": "nobody%40example.org", "file_name": "probe.png",
        "query_type": "profile", "state_key": "",
    }
    for_servers = {
        **values, "room_id": common_room, "event_id": common_event, "user_id": guest["user_id"], "me": me["user_id"],
        "media_id": picture.rsplit("/", 1)[1], "key_id": peer.key_name, "server": peer.name,
    }
    return token, name, values, for_servers


def asked_by_a_server(template, values, peer):
    """The query and the body with which another server's request makes sense."""
    query, body = {}, {}
    if "/state" in template:
        query = {"event_id": values["event_id"]}
    elif "/backfill/" in template:
        query = {"v": values["event_id"], "limit": "1"}
    elif "/query/{query_type}" in template:
        query = {"user_id": values["me"]}
    elif "/timestamp_to_event/" in template:
        query = {"ts": "0", "dir": "f"}
    elif "/make_" in template:
        query = {"ver": "12"}
    elif "/media/thumbnail/" in template:
        query = {"width": "32", "height": "32", "method": "scale"}
    elif "/send/{transaction_id}" in template:
        body = {"origin": peer.name, "origin_server_ts": int(time.time() * 1000), "pdus": [], "edus": []}
    elif "/get_missing_events/" in template:
        body = {"earliest_events": [], "latest_events": [values["event_id"]], "limit": 1}
    elif "/user/keys/" in template:
        body = {"device_keys": {values["me"]: []}, "one_time_keys": {}}
    elif template == "/_matrix/key/v2/query":
        body = {"server_keys": {peer.name: {}}}
    return query, body


def target_of(template, values, name, number, query):
    """A path for a template. The admin API deletes and deactivates, so there it is asked about nobody and nowhere."""
    harmless, nobody, nowhere = {**values}, f"@nobody:{name}", f"!nowhere:{name}"
    if template.startswith("/_synapse/admin"):
        harmless |= {"user_id": nobody, "target_user_id": nobody, "room_id": nowhere, "room_identifier": nowhere}
    elif any(word in f"{template}/" for word in LEAVES_THE_ROOM):
        # The room of the probes must stay joined, and what it becomes must not depend on the order.
        harmless |= {"room_id": nowhere, "room_identifier": nowhere}
    segments = []
    for segment in template.split("/"):
        if segment.startswith("{"):
            key = segment.strip("{}").rstrip(".+")
            segment = urllib.parse.quote(harmless.get(key, f"probe{key}"), safe="%")
        segments.append(segment)
    query = {"probe": str(number), **query}
    # Incremental, or another role would have to answer; and at once.
    if template.endswith("/sync"):
        query |= {"since": values["since"], "timeout": "0"}
    elif template.endswith("/events"):
        query |= {"from": values["since"], "timeout": "0"}
    return "/".join(segments) + "?" + urllib.parse.urlencode(query)


def probe(arguments):
    server = Server(arguments.url)
    password = pathlib.Path(arguments.password_file).read_text().strip()
    routes = json.loads(pathlib.Path(arguments.routes).read_text())
    peer = Peer(arguments.peer_url, arguments.peer_key)
    token, name, values, for_servers = sample_values(server, arguments.user, password, peer)

    def token_for(route, number):
        if not (route["template"].endswith(ENDS_THE_SESSION) or "/logout/" in route["template"]):
            return token
        guest = f"guest{number}"
        path = f"/_synapse/admin/v2/users/{urllib.parse.quote(f'@{guest}:{name}')}"
        status, answer = server.call("PUT", path, token, {"password": password})
        if status not in (200, 201):
            sys.exit(f"PUT {path} answered {status} {answer}; open the admin API with `listen.admin_api`")
        return log_in(server, guest, password)["access_token"]

    # Several variants of an endpoint make one result, but each call is a line in the log.
    results, failures, calls, signed = {}, [], 0, collections.Counter()
    for number, route in enumerate(routes):
        method, template = route["method"], route["template"]
        endpoint = f"{method} {template}"
        try:
            if is_for_servers(template):
                query, body = asked_by_a_server(template, for_servers, peer)
                target = target_of(template, for_servers, name, number, query)
                status, answer = server.call(method, target, body=body, peer=peer)
                signed[status] += 1
            else:
                target = target_of(template, values, name, number, {})
                status, answer = server.call(method, target, token_for(route, number))
        except (http.client.HTTPException, OSError) as error:
            failures.append(f"{endpoint}: no answer: {error!r}")
            continue
        calls += 1
        errcode = answer.get("errcode")
        results[endpoint] = {"status": status, "errcode": errcode, "number": number, "instances": route["instances"]}
        if errcode in ("M_UNKNOWN_TOKEN", "M_UNAUTHORIZED"):
            failures.append(f"{endpoint}: {status} {errcode}, so that nothing is known of the endpoint")
        elif errcode == "M_UNRECOGNIZED" and status in (404, 405):
            failures.append(f"{endpoint}: {status} {errcode}")
        elif any(endpoint.endswith(path) and status == worse for path, worse, _ in KNOWN):
            pass
        elif status in (429, 502, 503, 504) or (status == 500 and errcode is None):
            failures.append(f"{endpoint}: {status} {errcode}")

    # The log is written a moment after the answer.
    served, deadline = {}, time.monotonic() + 20
    while len(served) < calls and time.monotonic() < deadline:
        for line in pathlib.Path(arguments.access_log).read_text().splitlines():
            entry = json.loads(line)
            query = urllib.parse.parse_qs(urllib.parse.urlsplit(entry["path"]).query)
            if "probe" in query:
                served[int(query["probe"][0])] = entry.get("instance")
        time.sleep(0.2)
    for endpoint, result in results.items():
        result["served_by"] = served.get(result["number"])
        if result["served_by"] not in result["instances"]:
            failures.append(f"{endpoint}: served by {result['served_by']}, promised to {result['instances']}")
    pathlib.Path(arguments.out).write_text(json.dumps(results, indent=1))
    processes = len({r["served_by"] for r in results.values()})
    good = sum(count for status, count in signed.items() if status < 300)
    finish(
        f"{len(results)} endpoints called on {processes} processes, {signed.total()} signed by another server, of which "
        f"{good} were answered with 200",
        failures,
    )


def compare(arguments):
    first, second = (json.loads(pathlib.Path(file).read_text()) for file in (arguments.first, arguments.second))
    failures = []
    for endpoint in sorted(first.keys() | second.keys()):
        answers = [(answers.get(endpoint) or {}) for answers in (first, second)]
        told = [(answer.get("status"), answer.get("errcode")) for answer in answers]
        known = any(endpoint.endswith(path) and [told[0][0], told[1][0]] == codes for path, *codes in KNOWN)
        if told[0] != told[1] and not known:
            failures.append(f"{endpoint}: {told[0]} from the one, {told[1]} from the other")
    finish(f"{len(first)} endpoints compared", failures)


def finish(summary, failures):
    print("\n".join(failures))
    print(f"{summary}, {len(failures)} failures")
    sys.exit(1 if failures else 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("probe")
    for option in ("--url", "--user", "--password-file", "--routes", "--access-log", "--out", "--peer-url", "--peer-key"):
        one.add_argument(option, required=True)
    one.set_defaults(run=probe)
    two = commands.add_parser("compare")
    two.add_argument("first")
    two.add_argument("second")
    two.set_defaults(run=compare)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
