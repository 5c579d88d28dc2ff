#!/usr/bin/env python3
"""Post what a deploy did to a Slack-compatible webhook, whose address is in SLACK_WEBHOOK."""

import json
import os
import sys
import urllib.request

document = json.load(sys.stdin)
lines = [document["text"]]
if document["event"] == "begin":
    lines += [f"• {commit['subject']} ({commit['author']})" for commit in document["commits"][:10]]
if document["reason"]:
    lines += ["```", *document["reason"].splitlines()[:20], "```"]
lines += document["links"].values()
# In Slack's messages these three characters have a meaning.
text = "\n".join(lines).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
body = json.dumps({"text": text}).encode()
request = urllib.request.Request(os.environ["SLACK_WEBHOOK"], body, {"Content-Type": "application/json"})
urllib.request.urlopen(request, timeout=8).close()
