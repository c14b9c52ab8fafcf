"""
A relay in a process of its own, so that what it costs can be told apart.

It reads one line, a list of mailboxes in JSON, says "ready" and forwards until its standard input ends.
"""

import json
import sys

from corral.relay import Mailbox, Relay


def main() -> None:
    """Serves until standard input ends."""
    with Relay(sys.argv[1]) as relay:
        mailboxes = [Mailbox.from_base64(**entry) for entry in json.loads(sys.stdin.readline())]
        if failures := relay.set_mailboxes(mailboxes):
            sys.exit(failures[0].reason)
        print("ready", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
