"""Sends with Slack's own client, and expects what Slack would answer. Arguments: the service's URL."""

import sys

from slack_sdk import WebClient, WebhookClient
from slack_sdk.errors import SlackApiError
from slack_sdk.models.blocks import HeaderBlock, SectionBlock

url = sys.argv[1]

hook = WebhookClient(f"{url}/services/T0/B0/ci-key")
answer = hook.send(text="fallback", blocks=[HeaderBlock(text="Deployed :rocket:"), SectionBlock(text="*api* is _up_")])
assert (answer.status_code, answer.body) == (200, "ok"), answer.body
answer = hook.send_dict({"attachments": [{"color": "good", "title": "t", "fields": [{"title": "a", "value": "b"}]}]})
assert (answer.status_code, answer.body) == (200, "ok"), answer.body
answer = hook.send()
assert (answer.status_code, answer.body) == (400, "no_text"), answer.body
answer = WebhookClient(f"{url}/services/T0/B0/nobody").send(text="x")
assert (answer.status_code, answer.body) == (404, "no_service"), answer.body

client = WebClient(token="api-key", base_url=f"{url}/api/")
assert client.api_test()["ok"]
assert client.auth_test()["user"] == "api_key"
first = client.chat_postMessage(channel="#alerts", text="building", attachments=[{"text": "*42*"}])
channel, ts = first["channel"], first["ts"]
assert channel == "!alerts:example.org", channel
client.chat_postMessage(channel=channel, thread_ts=ts, text="a step")
assert client.chat_update(channel=channel, ts=ts, text="built")["ts"] == ts
client.chat_delete(channel=channel, ts=ts)
for call, error in [
    (lambda: client.chat_postMessage(channel="#nowhere", text="x"), "channel_not_found"),
    (lambda: client.chat_postMessage(channel=channel), "no_text"),
    (lambda: WebClient(token="x", base_url=f"{url}/api/").auth_test(), "invalid_auth"),
    (lambda: client.users_list(), "unknown_method"),
]:
    try:
        call()
    except SlackApiError as failed:
        assert failed.response["error"] == error, failed
    else:
        raise AssertionError(error)
