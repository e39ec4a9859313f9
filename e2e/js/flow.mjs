/**
 * What a client with end-to-end encryption does, by matrix-js-sdk: two people, several devices.
 *
 *     node flow.mjs --url URL --users users.json --report out.json
 *
 * `users.json` is a list of at least two {"name": …, "password": …}, who are registered if they do not exist. The steps
 * run one after the other and stop at the first that fails. Each says who has to answer its requests: method, a part of
 * the path, role. The report is like the one of `flow.py`; whoever has the router's access log holds it against that.
 */

import { readFileSync, writeFileSync } from "node:fs";
import { parseArgs } from "node:util";

import * as sdk from "matrix-js-sdk";
import { CryptoEvent, decodeRecoveryKey } from "matrix-js-sdk/lib/crypto-api/index.js";
import { logger } from "matrix-js-sdk/lib/logger.js";
import { RustBackupManager } from "matrix-js-sdk/lib/rust-crypto/backup.js";
import { SlidingSync, SlidingSyncEvent } from "matrix-js-sdk/lib/sliding-sync.js";

const STEP_SECONDS = 90;
/** How long something may take to show up with somebody else. */
const ARRIVAL_SECONDS = 30;
/** How long after an answer its line is in the access log. */
const LOG_SECONDS = 1;

const { values: options } = parseArgs({
    options: { url: { type: "string" }, users: { type: "string" }, report: { type: "string" } },
});
const run = Date.now().toString(36);
const [first, second] = JSON.parse(readFileSync(options.users, "utf8"));

// It tells much that the steps tell better.
logger.setLevel("silent");
for (const level of ["debug", "info", "warn", "error", "log", "trace"]) console[level] = () => {};
const say = (line) => process.stdout.write(`${line}\n`);

// Real clients wait up to ten seconds, lest a server hear of all its users' keys at once.
RustBackupManager.maxBackupLoopStartDelayMillis = 100;

const steps = [];
const step = (name, served, body) => steps.push({ name, served, body });
/** Devices by a name of the steps' own, and what else they share. */
const devices = {};
const rooms = {};

const check = (condition, reason) => {
    if (!condition) throw new Error(reason);
};
const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/** Looks until there is something. */
async function until(what, look, seconds = ARRIVAL_SECONDS) {
    const deadline = Date.now() + seconds * 1000;
    for (;;) {
        const found = await look();
        if (found) return found;
        check(Date.now() < deadline, `${what}: not within ${seconds} s`);
        await sleep(100);
    }
}

/** A new device of a person, with a crypto store of its own in memory, not syncing yet. */
async function logIn(person, recoveryKey) {
    const session = await sdk
        .createClient({ baseUrl: options.url, logger })
        .loginRequest({
            type: "m.login.password",
            identifier: { type: "m.id.user", user: person.name },
            password: person.password,
        });
    let key = recoveryKey;
    const client = sdk.createClient({
        baseUrl: options.url,
        userId: session.user_id,
        deviceId: session.device_id,
        accessToken: session.access_token,
        logger,
        cryptoCallbacks: {
            getSecretStorageKey: async ({ keys }) => [Object.keys(keys)[0], key],
            cacheSecretStorageKey: (_id, _info, made) => (key = made),
        },
    });
    await client.initRustCrypto({ useIndexedDB: false });
    // Whether its owner has an identity already.
    await client.getCrypto().userHasCrossSigningKeys(client.getUserId(), true);
    return client;
}

/** Syncs as an open client does, until logged out. */
async function start(client) {
    await client.startClient({ initialSyncLimit: 20, threadSupport: true, pollTimeout: 10_000 });
    await until("its first sync", () => client.isInitialSyncComplete());
    // The library uploads them meanwhile. A device that is signed before is refused.
    await until("its keys uploaded", async () => (await signatures(client, client)).length > 0);
    return client;
}

/** By which keys the owner has signed a device, as the server tells it to somebody. */
async function signatures(asker, { credentials: { userId }, deviceId }) {
    const wanted = { device_keys: { [userId]: [deviceId] } };
    const told = await asker.http.authedRequest("POST", "/keys/query", undefined, wanted);
    return Object.keys(told.device_keys[userId]?.[deviceId]?.signatures[userId] ?? {});
}

/** Waits until somebody is told that a device is signed not only by itself. */
const signed = (asker, device) =>
    until(`the device ${device.deviceId} signed`, async () => (await signatures(asker, device)).length > 1);

async function stop(client) {
    client.stopClient();
    await client.logout(true);
}

/** Answers the server's demand for the password once more. */
const withPassword = (person, client) => (makeRequest) =>
    makeRequest({
        type: "m.login.password",
        identifier: { type: "m.id.user", user: client.getUserId() },
        password: person.password,
    });

/** A room that both are in. */
async function makeRoom(owner, guest, settings) {
    const { room_id: room } = await owner.createRoom({
        preset: "private_chat",
        invite: [guest.getUserId()],
        ...settings,
    });
    await until("the invitation", () => guest.getRoom(room)?.getMyMembership() === "invite");
    await guest.joinRoom(room);
    for (const client of [owner, guest]) {
        await until("both in the room", () => client.getRoom(room)?.getJoinedMemberCount() === 2);
    }
    return room;
}

/** The event, once it has come to a client in the clear. */
const arrives = (client, room, id) =>
    until(`the event ${id}`, () => {
        const event = client.getRoom(room)?.findEventById(id);
        if (!event || event.isBeingDecrypted() || event.isDecryptionFailure()) return undefined;
        return event.isEncrypted() === rooms.secret.includes(room) ? event : undefined;
    });

const text = (body, more = {}) => ({ msgtype: "m.text", body, ...more });
const at = (room) => `/rooms/${encodeURIComponent(room)}`;

step(
    "log_in",
    [
        ["POST", "/_matrix/client/v3/login", "client_reader"],
        ["POST", "/_matrix/client/v3/keys/upload", "device_lists"],
    ],
    async () => {
        for (const person of [first, second]) {
            try {
                await sdk.createClient({ baseUrl: options.url, logger }).registerRequest({
                    auth: { type: "m.login.dummy" },
                    username: person.name,
                    password: person.password,
                    inhibit_login: true,
                });
            } catch (error) {
                check(error.errcode === "M_USER_IN_USE", `${person.name}: ${error}`);
            }
        }
        devices.ann = await start(await logIn(first));
        devices.ben = await start(await logIn(second));
    },
);

step("classic_sync", [["GET", "timeout=10000", "sync"]], async () => {
    rooms.secret = [];
    rooms.plain = await makeRoom(devices.ann, devices.ben, { name: `Plain ${run}` });
    const { event_id: event } = await devices.ann.sendMessage(rooms.plain, text("hello"));
    const seen = await arrives(devices.ben, rooms.plain, event);
    check(seen.getContent().body === "hello", `it came as ${JSON.stringify(seen.getContent())}`);
});

step(
    "cross_signing",
    [
        ["POST", "/_matrix/client/v3/keys/device_signing/upload", "device_lists"],
        ["POST", "/_matrix/client/v3/keys/signatures/upload", "device_lists"],
    ],
    async () => {
        for (const [person, client] of [
            [first, devices.ann],
            [second, devices.ben],
        ]) {
            const crypto = client.getCrypto();
            await crypto.bootstrapCrossSigning({ authUploadDeviceSigningKeys: withPassword(person, client) });
            check(await crypto.isCrossSigningReady(), `${person.name} cannot cross-sign`);
            await signed(client, client);
        }
    },
);

step(
    "secret_storage",
    [
        ["PUT", "/account_data/m.secret_storage.", "account_data"],
        ["PUT", "/account_data/m.cross_signing.", "account_data"],
        ["POST", "/_matrix/client/v3/room_keys/version", "client_reader"],
    ],
    async () => {
        const crypto = devices.ann.getCrypto();
        const made = await crypto.createRecoveryKeyFromPassphrase();
        await crypto.bootstrapSecretStorage({
            createSecretStorageKey: async () => made,
            setupNewSecretStorage: true,
            setupNewKeyBackup: true,
        });
        check(await crypto.isSecretStorageReady(), "the secret storage is not ready");
        rooms.recoveryKey = made.encodedPrivateKey;
        const version = await until("a backup", () => crypto.getActiveSessionBackupVersion());
        return `backup version ${version}`;
    },
);

step(
    "encrypted_room",
    [
        ["POST", "/_matrix/client/v3/createRoom", "room"],
        ["POST", "/_matrix/client/v3/keys/query", "client_reader"],
        ["POST", "/_matrix/client/v3/keys/claim", "client_reader"],
        ["PUT", "/sendToDevice/m.room.encrypted/", "to_device"],
        ["PUT", "/send/m.room.encrypted/", "room"],
        ["PUT", "/_matrix/client/v3/room_keys/keys", "client_reader"],
        ["GET", "/_matrix/client/v3/room_keys/version", "client_reader"],
    ],
    async () => {
        const { ann, ben } = devices;
        const encryption = { type: "m.room.encryption", state_key: "", content: { algorithm: "m.megolm.v1.aes-sha2" } };
        const room = await makeRoom(ann, ben, { name: `Secret ${run}`, initial_state: [encryption] });
        rooms.secret.push(room);
        rooms.told = [];
        for (const [from, to] of [
            [ann, ben],
            [ben, ann],
            [ann, ben],
        ]) {
            const words = `secret of ${from.getUserId()} ${run}`;
            const { event_id: event } = await from.sendMessage(room, text(words));
            const seen = await arrives(to, room, event);
            check(seen.getContent().body === words, `it came as ${JSON.stringify(seen.getContent())}`);
            rooms.told.push([event, words]);
        }
        const raw = await ann.fetchRoomEvent(room, rooms.told[0][0]);
        check(raw.type === "m.room.encrypted", `the server holds a ${raw.type}`);
        // The library itself remembers what it was told when the backup was new.
        const version = await until("the keys of both senders in the backup", async () => {
            const told = await ann.http.authedRequest("GET", "/room_keys/version");
            return told.count >= 2 && told;
        });
        return `${version.count} keys in the backup`;
    },
);

step(
    "backup_restored",
    [
        ["GET", "/_matrix/client/v3/room_keys/keys", "client_reader"],
        ["GET", "/_matrix/client/v3/room_keys/version", "client_reader"],
    ],
    async () => {
        const [room] = rooms.secret;
        const late = await start(await logIn(first, decodeRecoveryKey(rooms.recoveryKey)));
        devices.late = late;
        const crypto = late.getCrypto();
        const [event, words] = rooms.told[1];
        const blind = await until("the old message", () => late.getRoom(room)?.findEventById(event));
        await until("that it cannot be read", () => blind.isDecryptionFailure());

        await crypto.bootstrapCrossSigning({ authUploadDeviceSigningKeys: withPassword(first, late) });
        await crypto.loadSessionBackupPrivateKeyFromSecretStorage();
        const restored = await crypto.restoreKeyBackup();
        check(restored.imported >= 2, `restored: ${JSON.stringify(restored)}`);
        const seen = await arrives(late, room, event);
        check(seen.getContent().body === words, `it reads ${JSON.stringify(seen.getContent())}`);

        await signed(devices.ann, late);
        return `${restored.imported} keys restored`;
    },
);

step(
    "reactions_edits_redactions",
    [
        ["PUT", "/send/m.reaction/", "room"],
        ["PUT", "/send/m.room.message/", "room"],
        ["PUT", "/redact/", "room"],
    ],
    async () => {
        const { ann, ben } = devices;
        const room = rooms.plain;
        const { event_id: event } = await ann.sendMessage(room, text("teh first"));
        await arrives(ben, room, event);
        const { event_id: reaction } = await ben.sendEvent(room, "m.reaction", {
            "m.relates_to": { rel_type: "m.annotation", event_id: event, key: "👍" },
        });
        await ann.sendMessage(
            room,
            text("* the first", {
                "m.new_content": text("the first"),
                "m.relates_to": { rel_type: "m.replace", event_id: event },
            }),
        );
        await until("the edit", () => ben.getRoom(room).findEventById(event).getContent().body === "the first");
        const reactions = () => {
            const found = ann.getRoom(room).relations.getChildEventsForEvent(event, "m.annotation", "m.reaction");
            return found?.getRelations().length ?? 0;
        };
        await until("the reaction", () => reactions() === 1);
        await ben.redactEvent(room, reaction);
        await until("the reaction gone", () => reactions() === 0);
        await ann.redactEvent(room, event);
        await until("the message gone", () => ben.getRoom(room).findEventById(event).isRedacted());
    },
);

step(
    "threads",
    [
        ["PUT", "/send/m.room.message/", "room"],
        ["POST", "/receipt/m.read/", "receipts"],
        ["PUT", "/subscription", "thread_subscriptions"],
        ["GET", "/threads?", "room"],
        ["GET", "/relations/", "room"],
    ],
    async () => {
        const { ann, ben } = devices;
        const room = rooms.plain;
        const { event_id: root } = await ann.sendMessage(room, text("root"));
        await arrives(ben, room, root);
        // Where the server knows subscriptions, a thread that one has no part in is silent without.
        const subscription = `${at(room)}/thread/${encodeURIComponent(root)}/subscription`;
        const prefix = "/_matrix/client/unstable/io.element.msc4306";
        await ben.http.authedRequest("PUT", subscription, undefined, {}, { prefix });
        let last;
        for (let number = 0; number < 3; number++) {
            // Without the library, which trips over its own echo where a sync is faster than the answer.
            const path = `${at(room)}/send/m.room.message/thread${number}${run}`;
            const relation = { "m.relates_to": { rel_type: "m.thread", event_id: root } };
            ({ event_id: last } = await ann.http.authedRequest(
                "PUT",
                path,
                undefined,
                text(`in the thread ${number}`, relation),
            ));
        }
        const thread = await until("the thread", () => {
            const found = ben.getRoom(room).getThread(root);
            return found?.findEventById(last) ? found : undefined;
        });
        const bundled = (await ben.fetchRoomEvent(room, root)).unsigned["m.relations"]["m.thread"];
        check(bundled.count === 3, `the server counts ${bundled.count} in the thread`);
        const unread = () => ben.getRoom(room).getThreadUnreadNotificationCount(root, "total");
        await until("its unread count", () => unread() === 3);
        await ben.sendReadReceipt(thread.findEventById(last));
        await until("it read", () => unread() === 0);
        await until("the receipt in the thread, as seen by the other", () =>
            ann.getRoom(room).getThread(root)?.hasUserReadEvent(ben.getUserId(), last),
        );
        const listed = await ben.createThreadListMessagesRequest(room, null, 10, "b");
        check(
            listed.chunk.some((event) => event.event_id === root),
            `the thread is not among ${listed.chunk.length}`,
        );
    },
);

step(
    "typing_and_read_markers",
    [
        ["PUT", "/typing/", "typing"],
        ["POST", "/read_markers", "receipts"],
    ],
    async () => {
        const { ann, ben } = devices;
        const room = rooms.plain;
        const member = () => ben.getRoom(room).getMember(ann.getUserId());
        await ann.sendTyping(room, true, 20_000);
        await until("the typing", () => member().typing);
        await ann.sendTyping(room, false, 0);
        await until("the typing's end", () => !member().typing);
        const { event_id: event } = await ann.sendMessage(room, text("up to here"));
        const seen = await arrives(ben, room, event);
        await ben.setRoomReadMarkers(room, event, seen);
        await until("its own marker", () => {
            const marker = ben.getRoom(room).getAccountData("m.fully_read");
            return marker?.getContent().event_id === event;
        });
        await until("the receipt", () => ann.getRoom(room).hasUserReadEvent(ben.getUserId(), event));
    },
);

step(
    "media",
    [
        ["POST", "/_matrix/media/v3/upload", "media_repository"],
        ["GET", "/_matrix/client/v1/media/download/", "media_repository"],
        ["GET", "/_matrix/client/v1/media/config", "media_repository"],
    ],
    async () => {
        const { ann, ben } = devices;
        const data = new Uint8Array(70_000).map((_, index) => index % 251);
        await ann.getMediaConfig(true);
        const { content_uri: uri } = await ann.uploadContent(new Blob([data]), {
            name: `file ${run}`,
            type: "application/octet-stream",
        });
        const url = ben.mxcUrlToHttp(uri, undefined, undefined, undefined, false, true, true);
        const refused = await fetch(url);
        check(refused.status === 401, `without a token it says ${refused.status}`);
        const answer = await fetch(url, { headers: { Authorization: `Bearer ${ben.getAccessToken()}` } });
        check(answer.status === 200, `the download says ${answer.status}`);
        const got = Buffer.from(await answer.arrayBuffer());
        check(got.equals(Buffer.from(data)), `${got.length} bytes came back`);
    },
);

step(
    "delayed_events",
    [
        ["PUT", "org.matrix.msc4140.delay=", "room"],
        ["POST", "/restart", "client_reader"],
        ["POST", "/send", "main"],
        ["POST", "/cancel", "main"],
        ["GET", "/org.matrix.msc4140/delayed_events", "client_reader"],
    ],
    async () => {
        const { ann, ben } = devices;
        const room = rooms.plain;
        const later = async (words, delay) =>
            (await ann._unstable_sendDelayedEvent(room, { delay }, null, "m.room.message", text(words))).delay_id;
        await later(`alone ${run}`, 1_000);
        const sent = await later(`sent ${run}`, 600_000);
        const cancelled = await later(`cancelled ${run}`, 600_000);
        const waiting = (await ann._unstable_getDelayedEvents()).delayed_events.map((event) => event.delay_id);
        check(waiting.includes(sent) && waiting.includes(cancelled), `waiting are ${waiting}`);
        await ann._unstable_restartScheduledDelayedEvent(sent);
        await ann._unstable_sendScheduledDelayedEvent(sent);
        await ann._unstable_cancelScheduledDelayedEvent(cancelled);
        const events = () => ben.getRoom(room).getLiveTimeline().getEvents();
        const said = () => events().map((event) => event.getContent().body);
        const wanted = [`alone ${run}`, `sent ${run}`];
        await until("the delayed events", () => wanted.every((words) => said().includes(words)));
        check(!said().includes(`cancelled ${run}`), "the cancelled event was sent all the same");
    },
);

step("sliding_sync", [["POST", "/org.matrix.simplified_msc3575/sync", "sync"]], async () => {
    const { ann } = devices;
    const client = await logIn(second);
    const state = [
        ["m.room.name", ""],
        ["m.room.encryption", ""],
    ];
    const lists = new Map([["all", { ranges: [[0, 20]], timeline_limit: 5, required_state: state }]]);
    const subscription = { timeline_limit: 20, required_state: [["*", "*"]] };
    const sliding = new SlidingSync(options.url, lists, subscription, client, 10_000);
    const told = new Set();
    sliding.on(SlidingSyncEvent.RoomData, (room, data) => {
        for (const event of data.timeline ?? []) told.add(event.event_id);
    });
    await client.startClient({ slidingSync: sliding, threadSupport: true });
    await until("the room in the window", () => client.getRoom(rooms.plain)?.name === `Plain ${run}`);
    sliding.modifyRoomSubscriptions(new Set([rooms.plain]));
    const { event_id: event } = await ann.sendMessage(rooms.plain, text("sliding"));
    await until("the new message", () => told.has(event));
    const { event_id: secret } = await ann.sendMessage(rooms.secret[0], text(`sliding secret ${run}`));
    const seen = await arrives(client, rooms.secret[0], secret);
    check(seen.getContent().body === `sliding secret ${run}`, "its extensions have not brought the room key");
    await stop(client);
});

step(
    "dehydrated_device",
    [
        ["PUT", "/org.matrix.msc3814.v1/dehydrated_device", "device_lists"],
        ["PUT", "/_matrix/client/v3/devices/", "device_lists"],
        ["GET", "/events", "client_reader"],
    ],
    async () => {
        const { ann, ben } = devices;
        check(await ann.getCrypto().isDehydrationSupported(), "the server does not offer dehydrated devices");
        await ann.getCrypto().startDehydration();
        // Synapse tells others of a new dehydrated device before it has stored its keys, and not again. Whoever asks in
        // between does not see it until some device of its owner changes.
        await ann.setDeviceDetails(ann.getDeviceId(), { display_name: "awake" });
        const asleep = await until("the dehydrated device", async () => {
            const own = await ben.getCrypto().getUserDeviceInfo([ann.getUserId()]);
            return [...own.get(ann.getUserId()).values()].find((device) => device.dehydrated);
        });
        // Said while every device of hers but the sleeping one is away.
        await stop(devices.late);
        await stop(ann);
        const room = rooms.secret[0];
        await ben.getCrypto().forceDiscardSession(room);
        const words = `while nobody was there ${run}`;
        const { event_id: event } = await ben.sendMessage(room, text(words));
        const back = await start(await logIn(first, decodeRecoveryKey(rooms.recoveryKey)));
        devices.ann = back;
        let keys = 0;
        back.on(CryptoEvent.RehydrationProgress, (count) => (keys = count));
        await back.getCrypto().bootstrapCrossSigning({ authUploadDeviceSigningKeys: withPassword(first, back) });
        await back.getCrypto().startDehydration();
        const seen = await arrives(back, room, event);
        check(seen.getContent().body === words, `it reads ${JSON.stringify(seen.getContent())}`);
        return `${keys} room keys from ${asleep.deviceId}`;
    },
);

step("log_out", [["POST", "/_matrix/client/v3/logout", "main"]], async () => {
    await stop(devices.ann);
    await stop(devices.ben);
});

const report = { pass: 0, fail: 0, skip: 0, steps: [] };
for (const { name, served, body } of steps) {
    const started = new Date();
    let outcome = "pass";
    let detail = "";
    let timer;
    try {
        const late = new Promise((_, reject) => {
            timer = setTimeout(() => reject(new Error(`not done within ${STEP_SECONDS} s`)), STEP_SECONDS * 1000);
        });
        detail = (await Promise.race([body(), late])) ?? "";
    } catch (error) {
        outcome = "fail";
        const place = /flow\.mjs:\d+/.exec(error.stack ?? "");
        detail = `${error.message ?? error} (${place?.[0] ?? "somewhere"})`;
    }
    clearTimeout(timer);
    const seconds = (Date.now() - started) / 1000;
    const ended = new Date(Date.now() + LOG_SECONDS * 1000).toISOString();
    report[outcome] += 1;
    report.steps.push({ name, outcome, seconds, detail, started: started.toISOString(), ended, served });
    say(`${outcome.toUpperCase()} ${name.padEnd(28)} ${seconds.toFixed(2).padStart(6)} s  ${detail}`);
    if (outcome === "fail") break;
}
writeFileSync(options.report, JSON.stringify(report, null, 1));
const whole = report.pass === steps.length;
say(`${whole ? "PASS" : "FAIL"} ${steps.length} steps: ${report.pass} passed`);
process.exit(whole ? 0 : 1);
