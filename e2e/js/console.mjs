// The admin console in a real browser, against a real stack: each page's main action, and whether it happened, asked of
// Synapse itself by the client API. What goes wrong ends this with a message and exit code 1.
import assert from "node:assert/strict";
import { mkdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { parseArgs } from "node:util";

import { chromium } from "playwright-core";

const names = ["console", "homeserver", "admin", "password", "other", "other-password", "browser", "pictures"];
const { values: given } = parseArgs({ options: Object.fromEntries(names.map((name) => [name, { type: "string" }])) });
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
mkdirSync(given.pictures, { recursive: true });

// ---- Synapse's own word ----

const client = async (method, path, token, body) => {
  const answer = await fetch(given.homeserver + path, {
    method,
    headers: { "content-type": "application/json", ...(token && { authorization: `Bearer ${token}` }) },
    body: body && JSON.stringify(body),
  });
  return { status: answer.status, body: await answer.json() };
};
const login = (user, password) =>
  client("POST", "/_matrix/client/v3/login", null, {
    type: "m.login.password",
    identifier: { type: "m.id.user", user },
    password,
  });
const until = async (what, ask) => {
  for (let tries = 0; tries < 120; tries++) {
    const answer = await ask();
    if (answer) return answer;
    await new Promise((done) => setTimeout(done, 250));
  }
  throw new Error(`${what}: not within 30 s`);
};

// ---- the browser ----

const browser = await chromium.launch({
  executablePath: given.browser,
  args: process.getuid() === 0 ? ["--no-sandbox"] : [],
});
const complaints = [];
// A page that is refused on purpose is told in the browser's console too.
let refused = 0;
const watch = (page) => {
  page.on("pageerror", (error) => complaints.push(`${page.url()}: ${error}`));
  page.on("console", (message) => {
    if (message.type() !== "error") return;
    if (refused > 0 && message.text().startsWith("Failed to load resource")) refused--;
    else complaints.push(`${page.url()}: ${message.text()}`);
  });
  page.setDefaultTimeout(30_000);
  return page;
};
// Scripts of the test's own, the accessibility check, go past the policy of the pages; `strict` is what people have.
const strict = await browser.newContext();
const context = await browser.newContext({ bypassCSP: true });
const page = watch(await context.newPage());
const go = (path, where = page) => where.goto(given.console + path);
const heading = () => page.locator("h1").innerText();
const main = () => page.locator("main").innerText();
const press = (name) => page.locator("main").getByRole("button", { name, exact: true }).click();
const follow = (name) => page.locator("main").getByRole("link", { name, exact: true }).first().click();
const done = async () => (await page.locator(".notice").innerText()).trim();
const looked = new Set();
const look = async (name) => {
  await page.screenshot({ path: join(given.pictures, `${name}.png`), fullPage: true });
  await page.evaluate(axe);
  const result = await page.evaluate(() => globalThis.axe.run({ resultTypes: ["violations"] }));
  const found = result.violations.map((one) => `${one.id}: ${one.nodes.map((node) => node.html).join(" | ")}`);
  assert.deepEqual(found, [], `accessibility of ${name}`);
  looked.add(name);
};
const signIn = async (where, user, password) => {
  await go("/sign-in", where);
  await where.getByLabel("User").fill(user);
  await where.getByLabel("Password").fill(password);
  await where.getByRole("button", { name: "Sign in" }).click();
};

try {
  // Nobody sees anything before signing in, and only administrators do.
  await go("/users");
  assert.match(await heading(), /^Sign in/);
  await look("sign-in");
  for (const [user, password, why] of [
    [given.admin, "wrong", /wrong/],
    [given.other, given["other-password"], /no server administrator/],
  ]) {
    refused++;
    await signIn(page, user, password);
    assert.match(await page.getByRole("alert").innerText(), why);
  }
  await signIn(page, given.admin, given.password);
  assert.equal(await heading(), "Stack");
  const cookie = (await context.cookies()).find((one) => one.name === "matrix_stack_console");
  assert.ok(cookie.httpOnly && cookie.sameSite === "Strict", "the cookie is open to scripts or other sites");

  // The stack, live.
  await page.getByText("Live", { exact: true }).waitFor();
  await page.waitForFunction(() => document.querySelectorAll(".process.good").length > 3);
  assert.equal(await page.locator(".process.amiss").count(), 0);
  await look("stack");
  await page.emulateMedia({ colorScheme: "dark" });
  await look("stack-dark");
  await page.emulateMedia({ colorScheme: "light" });
  await page.setViewportSize({ width: 390, height: 800 });
  const wide = () => page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  assert.ok((await wide()) <= 0, "the stack's page is wider than a phone");
  await look("stack-phone");
  await page.setViewportSize({ width: 1280, height: 800 });

  // By keyboard alone, a process; its log; a restart, which is confirmed first.
  const link = page.locator('a.process[data-process="sync_1"]');
  await link.focus();
  await page.keyboard.press("Enter");
  await page.waitForURL("**/process/sync_1");
  const before = await main();
  assert.match(before, /State\s+healthy/);
  await look("process");
  await follow("Restart");
  await look("confirm");
  await press("Restart");
  assert.match(await done(), /^Healthy again: sync_1 after/);
  const number = (text) => /Process number\s+(\d+)/.exec(text)[1];
  assert.notEqual(number(await main()), number(before), "the process is the same");

  // Why a request goes where, and what a change would do.
  await go("/explain");
  await page.getByLabel("Path").fill("/_matrix/client/v3/rooms/!a:b/messages");
  await press("Explain");
  assert.match(await main(), /Processes\s+room_1/);
  await look("explain");
  await go("/plan");
  await page.getByLabel("Count of sync", { exact: true }).fill("3");
  await press("Compare");
  assert.match(await main(), /appears\s+sync_3/);
  await look("plan");

  // A user with a hostile name, from the first to the last day.
  const name = `conny${Date.now().toString(36)}`;
  const hostile = `<script>window.hacked=1</script><img src=x onerror="window.hacked=2">\u202eevil`;
  await go("/users");
  await follow("Create a user");
  await page.getByLabel("Name, as").fill(name);
  await page.getByLabel("Password").fill("first password");
  await page.getByLabel("Display name").fill(hostile);
  await look("create-user");
  await press("Create a user");
  assert.equal(await done(), "Create a user: done");
  const id = await heading();
  const first = await login(name, "first password");
  assert.equal(first.body.user_id, id);
  const token = first.body.access_token;
  const profile = await client("GET", `/_matrix/client/v3/profile/${encodeURIComponent(id)}`, token);
  assert.equal(profile.body.displayname, hostile);
  await go(`/users?name=${name}`);
  assert.ok((await main()).includes("<script>window.hacked=1</script>"), "the name is not shown");
  await look("users");
  await page.getByRole("link", { name: "Display name" }).click();
  assert.equal(await page.locator("th[aria-sort]").getAttribute("aria-sort"), "ascending");
  await follow(id);
  await look("user");
  for (const section of ["Devices", "Sessions", "Memberships", "Media", "Pushers", "Rate limits"]) {
    await follow(section);
    assert.equal(await heading(), section);
  }
  // Creating somebody who exists changes nothing.
  refused++;
  await go("/do/create-user");
  await page.getByLabel("Name, as").fill(name);
  await page.getByLabel("Password").fill("another password");
  await press("Create a user");
  assert.match(await page.getByRole("alert").innerText(), /taken/);
  assert.equal((await login(name, "first password")).status, 200);
  const act = async (name, fill = async () => {}) => {
    await go(`/users/${encodeURIComponent(id)}`);
    await follow(name);
    await fill();
    await press(name);
    assert.match(await done(), new RegExp(`^${name}: done`));
  };
  await act("Reset password", () => page.getByLabel("New password").fill("second password"));
  assert.equal((await login(name, "first password")).status, 403);
  assert.equal((await login(name, "second password")).status, 200);
  await act("Make administrator");
  assert.match(await main(), /Admin\s+yes/);
  await act("Revoke administrator");
  await act("Set rate limit", async () => {
    await page.getByLabel("Messages a second").fill("7");
    await page.getByLabel("Burst").fill("9");
  });
  assert.match(await main(), /7\s+9/);
  await act("Shadow-ban");
  assert.match(await main(), /Shadow-banned\s+yes/);
  await act("Lift shadow-ban");
  await act("Lock");
  assert.equal((await client("GET", "/_matrix/client/v3/account/whoami", token)).body.errcode, "M_USER_LOCKED");
  await act("Unlock");
  await act("Sign in as", () => page.getByLabel("For how many hours").fill("1"));

  // A room, and an event that somebody reports.
  const room = await client("POST", "/_matrix/client/v3/createRoom", token, { name: hostile, topic: hostile });
  const roomId = room.body.room_id;
  const path = `/_matrix/client/v3/rooms/${encodeURIComponent(roomId)}`;
  const sent = await client("PUT", `${path}/send/m.room.message/1`, token, { msgtype: "m.text", body: hostile });
  const report = { reason: hostile, score: -1 };
  const event = encodeURIComponent(sent.body.event_id);
  assert.equal((await client("POST", `${path}/report/${event}`, token, report)).status, 200);
  await go(`/event-reports?user_id=${encodeURIComponent(id)}`);
  assert.match(await main(), /1–1 of 1/);
  await look("event-reports");
  await page.locator("tbody a").first().click();
  await look("event-report");
  await follow("Close");
  await press("Close");
  assert.equal(await done(), "Close: done");
  await go("/rooms?search_term=hacked");
  await follow(roomId);
  assert.ok((await main()).includes("<script>window.hacked=1</script>"), "the room's name is not shown");
  await look("room");
  for (const section of ["Members", "State", "Media", "Block"]) {
    await follow(section);
    assert.equal(await heading(), section);
  }
  await look("room-block");
  await go(`/rooms/${encodeURIComponent(roomId)}`);
  await follow("Delete");
  await press("Delete");
  assert.match(await done(), /^Delete: done: \w+/);
  await until("the room's deletion", async () => {
    await page.reload();
    return /complete/.test(await main());
  });
  await look("deletions");
  const joined = await client("GET", "/_matrix/client/v3/joined_rooms", token);
  assert.deepEqual(joined.body.joined_rooms, []);

  await act("Deactivate");
  assert.equal((await login(name, "second password")).status, 403);
  await go(`/users?name=${name}&deactivated=true`);
  assert.match(await main(), /1–1 of 1/);

  // Registration tokens.
  await go("/registration-tokens");
  await follow("Create a token");
  await page.getByLabel("Token; without").fill(name);
  await page.getByLabel("Uses allowed").fill("2");
  await press("Create a token");
  assert.equal(await done(), "Create a token: done: " + name);
  const validity = `/_matrix/client/v1/register/m.login.registration_token/validity?token=${name}`;
  assert.equal((await client("GET", validity)).body.valid, true);
  await look("registration-tokens");
  await page.locator("tr", { hasText: name }).getByRole("link", { name: "Delete" }).click();
  await press("Delete");
  assert.equal((await client("GET", validity)).body.valid, false);

  // A background update, and all lists.
  await go("/background-updates");
  await follow("Start an update");
  await press("Start an update");
  assert.equal(await done(), "Start an update: done");
  for (const [list, title] of [
    ["user-reports", "User reports"],
    ["destinations", "Federation"],
    ["background-updates", "Background updates"],
    ["tasks", "Scheduled tasks"],
    ["media-statistics", "Media by user"],
  ]) {
    await go(`/${list}`);
    assert.equal(await heading(), title);
    assert.equal(await page.locator(".trouble").count(), 0, await main());
    await look(list);
  }

  // Synapse fails here on a server that is as new as this; the page says why.
  refused++;
  await go("/room-statistics");
  if ((await heading()) === "Largest rooms") refused--;
  assert.match(await main(), /from the statistics of PostgreSQL/);
  await look("room-statistics");

  // What was done is written down, without passwords.
  await go("/audit");
  const log = await main();
  for (const what of ["create-user", "reset-password", "delete-room", "restart", "sign in"]) assert.ok(log.includes(what), what);
  assert.ok(!log.includes("second password"), "a password is in the audit log");
  await look("audit");

  // A form without what only the page holds does nothing.
  refused++;
  const forged = await page.evaluate(async () => {
    const body = new URLSearchParams({ csrf: "x", id: "@nobody:x" });
    return (await fetch("/do/lock-user", { method: "POST", body })).status;
  });
  assert.equal(forged, 403);

  // Under the policy that people's browsers have, and without scripts at all.
  const plain = await browser.newContext({ javaScriptEnabled: false });
  for (const [where, live] of [[strict, true], [plain, false]]) {
    const view = watch(await where.newPage());
    await signIn(view, given.admin, given.password);
    assert.equal(await view.locator("h1").innerText(), "Stack");
    if (live) await view.getByText("Live", { exact: true }).waitFor();
    await go(`/users?name=${name}`, view);
    assert.match(await view.locator("tbody").innerText(), /window\.hacked/);
    if (live) assert.equal(await view.evaluate("window.hacked"), undefined);
    await view.getByRole("button", { name: "Sign out" }).click();
    assert.match(await view.locator("h1").innerText(), /^Sign in/);
  }
  assert.equal(await page.evaluate("window.hacked"), undefined);
  await page.getByRole("button", { name: "Sign out" }).click();
  await go("/");
  assert.match(await heading(), /^Sign in/);
  assert.deepEqual(complaints, [], "the browser complained");
  console.log(`${looked.size} pages were looked at`);
} catch (error) {
  await page.screenshot({ path: join(given.pictures, "failure.png"), fullPage: true });
  console.error(`at ${page.url()}:\n${await page.locator("body").innerText()}\n`);
  throw error;
} finally {
  await browser.close();
}
