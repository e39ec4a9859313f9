"""What the benchmark asks for: a mix of requests as a busy homeserver sees them, and where each has to go."""

import base64
import random

USERS = 400
ROOMS = 300
SERVERS = 60
# How many requests are made beforehand; the load generator sends them in turn.
PREPARED = 4096

# Weight, method, path, bytes of request body, bytes of response body, role.
# {u} a user, {r} a room, {e} an event, {n} a number.
C = "/_matrix/client/v3"
F = "/_matrix/federation/v1"
MIX = [
    (180, "GET", C + "/sync?since=s{n}_0_1&timeout=30000&filter=0&set_presence=online", 0, 1100, "sync"),
    (60, "POST", "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync?pos={n}&timeout=30000", 700, 1500, "sync"),
    (6, "GET", C + "/sync?filter=0&timeout=0", 0, 16000, "initial_sync"),
    (60, "PUT", C + "/rooms/{r}/send/m.room.encrypted/m{n}.1", 700, 60, "room"),
    (20, "PUT", C + "/rooms/{r}/send/m.room.message/m{n}.2", 180, 60, "room"),
    (8, "PUT", C + "/rooms/{r}/state/m.room.topic/", 90, 60, "room"),
    (3, "PUT", C + "/rooms/{r}/redact/{e}/m{n}.3", 20, 60, "room"),
    (4, "POST", C + "/rooms/{r}/invite", 60, 2, "room"),
    (4, "POST", C + "/join/{r}?server_name=s1.test", 2, 70, "room"),
    (30, "GET", C + "/rooms/{r}/messages?dir=b&limit=30&from=t{n}", 0, 7000, "room"),
    (12, "GET", C + "/rooms/{r}/members?not_membership=leave", 0, 5000, "room"),
    (8, "GET", "/_matrix/client/v1/rooms/{r}/relations/{e}/m.thread?limit=10", 0, 3000, "room"),
    (6, "GET", C + "/rooms/{r}/context/{e}?limit=0", 0, 2500, "room"),
    (5, "GET", C + "/rooms/{r}/event/{e}", 0, 600, "room"),
    (60, "PUT", C + "/rooms/{r}/typing/{u}", 35, 2, "typing"),
    (50, "POST", C + "/rooms/{r}/receipt/m.read/{e}", 2, 2, "receipts"),
    (20, "POST", C + "/rooms/{r}/read_markers", 150, 2, "receipts"),
    (14, "PUT", C + "/sendToDevice/m.room.encrypted/m{n}.4", 1800, 2, "to_device"),
    (10, "PUT", C + "/user/{u}/account_data/m.push_rules", 300, 2, "account_data"),
    (10, "PUT", C + "/presence/{u}/status", 40, 2, "presence"),
    (6, "GET", C + "/pushrules/", 0, 4000, "push_rules"),
    (20, "POST", C + "/keys/query", 300, 3000, "client_reader"),
    (14, "POST", C + "/keys/upload", 2000, 60, "device_lists"),
    (8, "POST", C + "/keys/claim", 200, 600, "client_reader"),
    (6, "GET", C + "/room_keys/version", 0, 400, "client_reader"),
    (20, "GET", C + "/profile/{u}", 0, 120, "client_reader"),
    (6, "GET", C + "/account/whoami", 0, 90, "client_reader"),
    (6, "GET", "/_matrix/client/versions", 0, 1500, "client_reader"),
    (4, "POST", C + "/user_directory/search", 60, 1500, "user_dir"),
    (4, "POST", C + "/search", 200, 4000, "client_reader"),
    (30, "GET", "/_matrix/client/v1/media/thumbnail/s1.test/m{n}?width=64&height=64&method=crop", 0, 9000, "media_repository"),
    (8, "GET", "/_matrix/client/v1/media/download/s1.test/m{n}", 0, 60000, "media_repository"),
    (3, "POST", "/_matrix/media/v3/upload?filename=a.png", 40000, 70, "media_repository"),
    (2, "GET", "/_matrix/client/v1/media/preview_url?url=https%3A%2F%2Fexample.org%2F{n}", 0, 800, "media_repository"),
    (60, "PUT", F + "/send/{n}", 3500, 60, "federation_inbound"),
    (10, "GET", F + "/event/{e}", 0, 1500, "federation_reader"),
    (8, "GET", F + "/state_ids/{r}?event_id={e}", 0, 6000, "federation_reader"),
    (8, "GET", F + "/backfill/{r}?v={e}&limit=100", 0, 16000, "federation_reader"),
    (10, "POST", F + "/user/keys/query", 120, 1500, "federation_reader"),
    (8, "GET", "/_matrix/key/v2/server", 0, 500, "federation_reader"),
    (10, "POST", C + "/pushers/set", 300, 2, "main"),
    (6, "POST", C + "/logout", 2, 2, "main"),
    (4, "GET", C + "/notifications?limit=20", 0, 3000, "client_reader"),
]

ELEMENT = [
    ("Host", "matrix.bench.test"),
    ("User-Agent", "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Element/1.12.5 Chrome/142.0.0.0 Safari/537.36"),
    ("Accept", "application/json"),
    ("Accept-Encoding", "gzip, deflate, br, zstd"),
    ("Accept-Language", "en-GB,en;q=0.9"),
    ("Origin", "https://app.element.io"),
    ("Referer", "https://app.element.io/"),
    ("Sec-Fetch-Mode", "cors"),
    ("Connection", "keep-alive"),
]
SYNAPSE = [("Host", "matrix.bench.test"), ("User-Agent", "Synapse/1.163.2"), ("Accept", "application/json")]


def token(user):
    localpart = base64.b64encode(f"user{user}".encode()).decode().rstrip("=")
    return f"syt_{localpart}_QhyZlmJtKfyEdNqYUdSb_1Sx9Wp"


def prepared():
    """The requests, as they go over the wire."""
    rng = random.Random(7)
    kinds = rng.choices(MIX, weights=[kind[0] for kind in MIX], k=PREPARED)
    out = []
    for number, (_, method, path, sent, answered, _) in enumerate(kinds):
        user, room = rng.randrange(USERS), rng.randrange(ROOMS)
        path = path.format(
            u=f"%40user{user}%3Abench.test", r=f"!room{room:04}abcdefghijk%3Abench.test", e=f"$event{number:05}abcdefghijklmnopqrstuvwxyz0123456789", n=number
        )
        if "/federation/" in path:
            origin = f"s{rng.randrange(SERVERS)}.test"
            headers = SYNAPSE + [("Authorization", f'X-Matrix origin="{origin}",destination="bench.test",key="ed25519:a_bcde",sig="{"x" * 86}"')]
        elif path.startswith("/_matrix/key/"):
            headers = SYNAPSE
        else:
            headers = ELEMENT + [("Authorization", f"Bearer {token(user)}")]
        headers = headers + [("x-stub-bytes", str(answered))]
        body = ""
        if method in ("POST", "PUT"):
            headers = headers + [("Content-Type", "application/json"), ("Content-Length", str(sent))]
            body = "x" * sent
        head = "".join(f"{name}: {value}\r\n" for name, value in headers)
        out.append(f"{method} {path} HTTP/1.1\r\n{head}\r\n{body}")
    return out
