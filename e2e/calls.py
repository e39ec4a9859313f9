"""Tokens for calls, from the service under test to users of two real homeservers.

LiveKit's own library reads the tokens and requests. What stands in for the SFU is no SFU: it records
the requests of the service, reads them with LiveKit's protocol classes, and says who is in a room as
it is told here. Its webhooks are signed as an SFU signs them.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
from aiohttp import web
from livekit import api
from livekit.protocol import models, room as rooms

# Newest first; the SFU has both.
KEYS = {"new": "the newer secret, of some length", "old": "the older secret, of some length"}
UNSTABLE = "/_matrix/client/unstable/org.matrix.msc4140/delayed_events"
# For what happens soon. What is looked for would take an hour by itself.
SOON = 30
DELAY = 3_600_000


def check(condition: object, reason: object) -> None:
    if not condition:
        raise SystemExit(f"wrong: {reason}")


async def until(what: str, ask: Any) -> Any:
    deadline = time.monotonic() + SOON
    while time.monotonic() < deadline:
        if answer := await ask():
            return answer
        await asyncio.sleep(0.05)
    raise SystemExit(f"{what}: not within {SOON} s")


def hashed(*parts: str) -> str:
    text = json.dumps(parts, separators=(",", ":"), ensure_ascii=False)
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")


def verified(token: str, key: str = "new") -> api.access_token.Claims:
    return api.TokenVerifier(key, KEYS[key]).verify(token)


class Recorder:
    """Records what an SFU is asked."""

    def __init__(self) -> None:
        self.created: list[rooms.CreateRoomRequest] = []
        self.there: set[tuple[str, str]] = set()
        self.rooms: dict[str, int] = {}
        self.asked = 0

    async def start(self) -> int:
        app = web.Application()
        app.router.add_post("/sfu/twirp/livekit.RoomService/{method}", self.twirp)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return site._server.sockets[0].getsockname()[1]

    async def twirp(self, request: web.Request) -> web.Response:
        check(request.content_type == "application/protobuf", request.content_type)
        grants = verified(request.headers["authorization"].removeprefix("Bearer ")).video
        body, method = await request.read(), request.match_info["method"]
        if method == "CreateRoom":
            asked = rooms.CreateRoomRequest.FromString(body)
            check(grants.room_create, "a room is made with a token that allows it")
            self.created.append(asked)
            answer: Any = models.Room(name=asked.name)
        elif method == "ListRooms":
            check(grants.room_list, "rooms are listed with a token that allows it")
            answer = rooms.ListRoomsResponse(
                rooms=[models.Room(name=name, num_participants=count) for name, count in self.rooms.items()]
            )
        else:
            check(method == "GetParticipant", method)
            asked = rooms.RoomParticipantIdentity.FromString(body)
            check(grants.room_admin and grants.room == asked.room, "a token for the room")
            self.asked += 1
            if (asked.room, asked.identity) not in self.there:
                return web.json_response({"code": "not_found", "msg": "participant does not exist"}, status=404)
            answer = models.ParticipantInfo(identity=asked.identity)
        return web.Response(body=answer.SerializeToString(), content_type="application/protobuf")


class User:
    """Somebody with an account on a homeserver."""

    def __init__(self, http: aiohttp.ClientSession, server: dict[str, str]) -> None:
        self.http, self.server = http, server

    async def register(self, name: str) -> User:
        body = {"username": name, "password": f"{name}'s password", "auth": {"type": "m.login.dummy"}}
        done = await self.ask("POST", "/_matrix/client/v3/register", body)
        self.id, self.device, self.token = done["user_id"], done["device_id"], done["access_token"]
        self.auth = {"authorization": f"Bearer {self.token}"}
        path = f"/_matrix/client/v3/user/{quote(self.id)}/openid/request_token"
        self.openid = await self.ask("POST", path, {})
        return self

    async def ask(self, method: str, path: str, body: Any = None) -> Any:
        headers = getattr(self, "auth", {})
        async with self.http.request(method, self.server["url"] + path, json=body, headers=headers) as answer:
            text = await answer.text()
            check(answer.status == 200, f"{method} {path}: {answer.status} {text}")
            return json.loads(text)

    def body(self, room: str, **more: Any) -> dict[str, Any]:
        member = {"id": "member", "claimed_user_id": self.id, "claimed_device_id": self.device}
        asked = {"room_id": room, "slot_id": "m.call#ROOM", "openid_token": self.openid, "member": member}
        return asked | more

    def identity(self) -> str:
        return hashed(self.id, self.device, "member")

    async def delayed(self, room: str, key: str) -> str:
        path = f"/_matrix/client/v3/rooms/{quote(room)}/state/org.example.membership/{key}"
        done = await self.ask("PUT", f"{path}?org.matrix.msc4140.delay={DELAY}", {"left": True})
        return done["delay_id"]

    async def since(self, delay_id: str) -> int | None:
        """When the homeserver began to wait; nothing if it waits no more."""
        waiting = (await self.ask("GET", UNSTABLE))["delayed_events"]
        return next((event["running_since"] for event in waiting if event["delay_id"] == delay_id), None)

    async def has_left(self, room: str, key: str) -> bool:
        path = f"/_matrix/client/v3/rooms/{quote(room)}/state/org.example.membership/{key}"
        async with self.http.get(self.server["url"] + path, headers=self.auth) as answer:
            return answer.status == 200 and (await answer.json()) == {"left": True}


class Service:
    """The service under test."""

    def __init__(
        self, http: aiohttp.ClientSession, facts: dict[str, Any], sfus: list[int], port: str = "port", **leaves: Any
    ) -> None:
        self.http, self.facts = http, facts
        self.url = f"http://127.0.0.1:{facts[port]}"
        self.file = Path(facts["directory"]) / f"livekit-jwt-{port}.yaml"
        leaves = leaves or {"store": str(self.file.with_name("jobs.sqlite")), "check_seconds": 1}
        keys = Path(facts["directory"]) / "keys"
        keys.write_text("".join(f"{name}: {secret}\n" for name, secret in KEYS.items()))
        keys.chmod(0o600)
        self.file.write_text(json.dumps({
            "listen": f"127.0.0.1:{facts[port]}",
            "sfus": [{"url": f"ws://127.0.0.1:{port}/sfu", "keys_file": str(keys)} for port in sfus],
            "full_access_homeservers": [facts["a"]["name"]],
            "restricted_users_publish": False,
            "delayed_leaves": leaves,
            "limits": {"user": {"per_minute": 0, "burst": 1}, "homeserver": {"per_minute": 0, "burst": 1}},
            "federation": {"allowed_networks": ["127.0.0.0/8"], "ca_file": facts["ca_file"]},
        }))

    async def start(self) -> None:
        self.log = self.file.with_suffix(".log").open("ab")
        words = [self.facts["program"], "serve", "livekit-jwt", "--config", str(self.file)]
        self.process = await asyncio.create_subprocess_exec(*words, stdout=self.log, stderr=self.log)

        async def answers() -> bool:
            check(self.process.returncode is None, self.file.with_suffix(".log").read_text()[-2000:])
            try:
                async with self.http.get(f"{self.url}/healthz") as answer:
                    return answer.status == 200
            except aiohttp.ClientError:
                return False

        await until("the service answers", answers)

    async def stop(self, how: int = signal.SIGTERM) -> None:
        self.process.send_signal(how)
        code = await asyncio.wait_for(self.process.wait(), SOON)
        check(code == (0 if how == signal.SIGTERM else -how), f"it ended with {code}")
        self.log.close()

    async def post(self, path: str, body: Any, status: int = 200) -> Any:
        async with self.http.post(self.url + path, json=body) as answer:
            text = await answer.text()
            check(answer.status == status, f"{path}: {answer.status} {text}")
            check(answer.headers["access-control-allow-origin"] == "*", "CORS")
            return json.loads(text)

    async def refused(self, path: str, body: Any, status: int, errcode: str) -> None:
        said = await self.post(path, body, status)
        check(said["errcode"] == errcode, said)

    async def webhook(self, key: str, event: str, room: str, identity: str, **participant: Any) -> None:
        body = json.dumps({
            "event": event, "room": {"name": room}, "participant": {"identity": identity} | participant,
        })
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        token = api.AccessToken(key, KEYS[key]).with_sha256(digest).to_jwt()
        headers = {"authorization": token, "content-type": "application/webhook+json"}
        async with self.http.post(f"{self.url}/sfu_webhook", data=body, headers=headers) as answer:
            check(answer.status == 200, answer.status)


async def tokens(service: Service, sfu: Recorder, ann: User, bob: User, room: str) -> None:
    """Who gets a token, and for what."""
    name = hashed(room, "m.call#ROOM")
    given = await service.post("/get_token", ann.body(room))
    check(given["url"].startswith("ws://127.0.0.1:"), given)
    claims = verified(given["jwt"])
    check(claims.identity == ann.identity(), claims)
    video = claims.video
    check(video.room == name and video.room_join and not video.room_create, video)
    check(video.can_publish and video.can_subscribe and not video.can_update_own_metadata, video)
    [created] = sfu.created
    wanted = rooms.CreateRoomRequest(name=name, empty_timeout=300, departure_timeout=20)
    check(created == wanted, created)

    # The other homeserver is found and asked, and its user may join.
    given = await service.post("/get_token", bob.body(room))
    claims = verified(given["jwt"])
    check(claims.identity == bob.identity() and claims.video.room == name, claims)
    check(claims.video.room_join and not claims.video.can_publish, claims)
    check(len(sfu.created) == 1, "a restricted user makes no room")

    legacy = {"room": room, "openid_token": ann.openid, "device_id": ann.device}
    claims = verified((await service.post("/sfu/get", legacy))["jwt"])
    check(claims.identity == f"{ann.id}:{ann.device}" and claims.video.room == name, claims)

    wrong = ann.openid | {"access_token": "no such token"}
    await service.refused("/get_token", ann.body(room, openid_token=wrong), 401, "M_UNAUTHORIZED")
    elsewhere = ann.openid | {"matrix_server_name": service.facts["b"]["name"]}
    await service.refused("/get_token", ann.body(room, openid_token=elsewhere), 401, "M_UNAUTHORIZED")
    await service.refused("/get_token", ann.body(room, openid_token=bob.openid), 401, "M_UNAUTHORIZED")
    delay = {"delay_id": "x", "delay_timeout": 8000}
    await service.refused("/get_token", bob.body(room, **delay), 400, "M_BAD_JSON")
    await service.refused("/delegate_delayed_leave", bob.body(room, **delay), 403, "M_FORBIDDEN")


async def restarted(ann: User, delay_id: str, since: int) -> int:
    """Waits until the homeserver has begun to wait anew."""
    async def ask() -> int | None:
        begun = await ann.since(delay_id)
        return begun if begun and begun > since else None
    return await until("the leave is restarted", ask)


async def shared(one: Service, other: Service, sfu: Recorder, ann: User, room: str) -> None:
    """Two processes with one Valkey: what one is told concerns both, and each goes on where the other ends."""
    name, who = hashed(room, "m.call#ROOM"), ann.identity()

    async def delegated(service: Service, key: str) -> tuple[str, int]:
        delay_id = await ann.delayed(room, key)
        since = await ann.since(delay_id)
        await asyncio.sleep(0.01)
        await service.post("/get_token", ann.body(room, delay_id=delay_id, delay_timeout=DELAY))
        return delay_id, since

    delay_id, since = await delegated(one, "told-the-other")
    await asyncio.sleep(1)
    check(await ann.since(delay_id) == since, "nobody has joined yet")
    await other.webhook("new", "participant_joined", name, who)
    since = await restarted(ann, delay_id, since)
    sfu.there.add((name, who))
    for how in (signal.SIGTERM, signal.SIGKILL):
        await one.stop(how)
        since = await restarted(ann, delay_id, since)
        await one.start()
        one, other = other, one
    await one.webhook("old", "participant_left", name, who, disconnectReason="CLIENT_INITIATED")
    await until("the leave is sent", lambda: ann.has_left(room, "told-the-other"))

    # The same member's next one, at the other.
    first, _ = await delegated(one, "one")
    second, since = await delegated(other, "other")
    await restarted(ann, second, since)
    await one.webhook("new", "participant_left", name, who, disconnectReason="CLIENT_INITIATED")
    await until("the leave is sent", lambda: ann.has_left(room, "other"))
    await one.stop()
    await other.stop()


async def leaves(service: Service, sfu: Recorder, ann: User, room: str) -> None:
    """Delayed leaves of a real homeserver, held up while somebody is there and sent when they go."""
    name, who = hashed(room, "m.call#ROOM"), ann.identity()

    async def delegated(key: str, path: str = "/get_token") -> tuple[str, int]:
        delay_id = await ann.delayed(room, key)
        since = await ann.since(delay_id)
        check(since, "the homeserver waits")
        await asyncio.sleep(0.01)
        done = await service.post(path, ann.body(room, delay_id=delay_id, delay_timeout=DELAY))
        check(path == "/get_token" or done == {}, done)
        return delay_id, since

    async def left(key: str) -> None:
        await until(f"the leave {key} is sent", lambda: ann.has_left(room, key))

    # Told by the SFU, whose older key signs.
    delay_id, since = await delegated("told")
    await service.webhook("old", "participant_joined", name, who)
    await restarted(ann, delay_id, since)
    sfu.there.add((name, who))
    await service.webhook("new", "participant_left", name, who, disconnectReason="CLIENT_INITIATED")
    await left("told")

    # Found by asking; and gone without a word.
    delay_id, since = await delegated("found", "/delegate_delayed_leave")
    await restarted(ann, delay_id, since)
    check(not await ann.has_left(room, "found"), "nobody has left")
    sfu.there.clear()
    await left("found")

    # Over restarts of the service, of which one is a kill.
    for key, how in [("stopped", signal.SIGTERM), ("killed", signal.SIGKILL)]:
        sfu.there.add((name, who))
        delay_id, since = await delegated(key)
        await restarted(ann, delay_id, since)
        since = await ann.since(delay_id)
        await service.stop(how)
        await service.start()
        await restarted(ann, delay_id, since)
        await service.webhook("new", "participant_left", name, who, disconnectReason="CLIENT_INITIATED")
        await left(key)

    # A second one takes the first one's place, which the homeserver goes on to wait for.
    first, _ = await delegated("first")
    second, since = await delegated("second")
    await restarted(ann, second, since)
    await service.webhook("new", "participant_left", name, who, disconnectReason="DUPLICATE_IDENTITY")
    await left("second")
    check(await ann.since(first), "nobody cares for the first any more")
    sfu.there.clear()


async def several(service: Service, first: Recorder, second: Recorder, ann: User, ports: list[int]) -> None:
    """A call goes where there is least to do, and stays where it is."""
    first.rooms = {"busy": 5}
    urls = [f"ws://127.0.0.1:{port}/sfu" for port in ports]
    check((await service.post("/get_token", ann.body("!new:x")))["url"] == urls[1], "the idle one")
    first.rooms |= {hashed("!old:x", "m.call#ROOM"): 1}
    check((await service.post("/get_token", ann.body("!old:x")))["url"] == urls[0], "the one that has it")
    second.rooms = {"busier": 50}
    check((await service.post("/get_token", ann.body("!new:x")))["url"] == urls[1], "where it has been")
    check((await service.post("/get_token", ann.body("!newer:x")))["url"] == urls[0], "the less busy one")


async def main() -> None:
    facts = json.loads(Path(sys.argv[1]).read_text())
    timeout = aiohttp.ClientTimeout(total=60)
    first, second = Recorder(), Recorder()
    ports = [await first.start(), await second.start()]
    async with aiohttp.ClientSession(timeout=timeout) as http:
        unique = os.urandom(4).hex()
        ann = await User(http, facts["a"]).register(f"ann-{unique}")
        bob = await User(http, facts["b"]).register(f"bob-{unique}")
        room = (await ann.ask("POST", "/_matrix/client/v3/createRoom", {}))["room_id"]
        service = Service(http, facts, ports[:1])
        await service.start()
        started = [service]
        try:
            await tokens(service, first, ann, bob, room)
            await leaves(service, first, ann, room)
            doctor = await asyncio.create_subprocess_exec(
                facts["program"], *facts["doctor"], stdout=asyncio.subprocess.PIPE
            )
            report, _ = await asyncio.wait_for(doctor.communicate(), 120)
            check(doctor.returncode == 0, report.decode())
            (Path(facts["directory"]) / "doctor.json").write_bytes(report)
            await service.stop()
            service = Service(http, facts, ports)
            await service.start()
            started.append(service)
            await several(service, first, second, ann, ports)
            await service.stop()
            first.rooms, first.there = {}, set()
            both = [Service(http, facts, ports[:1], port, valkey=facts["valkey"]) for port in ("port", "other_port")]
            for one in both:
                await one.start()
                started.append(one)
            await shared(both[0], both[1], first, ann, room)
        finally:
            for service in started:
                if service.process.returncode is None:
                    service.process.kill()
    print(f"{len(first.created) + len(second.created)} rooms made, {first.asked} lookups of members")


asyncio.run(main())
