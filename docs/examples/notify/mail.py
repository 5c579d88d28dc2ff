#!/usr/bin/env python3
"""Mail how a deploy ended, to the address in the first argument, with the commits and their authors."""

import json
import subprocess
import sys
from email.message import EmailMessage

SENDMAIL = "/usr/sbin/sendmail"

document = json.load(sys.stdin)
if document["event"] in {"success", "failure"}:
    message = EmailMessage()
    message["To"] = sys.argv[1]
    message["Subject"] = document["text"]
    lines = [*(f"{state}: {', '.join(hosts)}" for state, hosts in document["hosts"].items()), ""]
    for sign in ("commits", "removed"):
        lines += [f"{sign}: {each['sha'][:9]} {each['subject']} ({each['author']})" for each in document[sign]]
    lines += ["", document["reason"] or "", *document["links"].values()]
    message.set_content("\n".join(lines))
    subprocess.run([SENDMAIL, "-t", "-i"], input=message.as_bytes(), check=True)
