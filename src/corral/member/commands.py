"""Running the programs that change the network, and the end of a container that cannot."""

import subprocess


class Fatal(Exception):
    """This container cannot do its work; the text says what is missing and what to do about it."""


def run(*command: str, given: str = "") -> "subprocess.CompletedProcess[str]":
    """Run a program to its end.

    Args:
        command: the program and its arguments; never a secret among them.
        given: its standard input.

    Raises:
        Fatal: it is not in the image, or hangs.
    """
    try:
        return subprocess.run(command, input=given, capture_output=True, text=True, timeout=30, check=False)
    except FileNotFoundError:
        raise Fatal(f"{command[0]} is not in this image; it is not corral-net") from None
    except subprocess.TimeoutExpired:
        raise Fatal(f"{command[0]} did not answer within 30 s") from None


def must(*command: str, given: str = "") -> str:
    """Run a program that has to succeed; returns what it printed.

    Raises:
        Fatal: it did not.
    """
    done = run(*command, given=given)
    if done.returncode != 0:
        raise Fatal(f"`{' '.join(command[:2])}` failed with status {done.returncode}: {last_words(done)}")
    return done.stdout


def last_words(done: "subprocess.CompletedProcess[str]") -> str:
    """The last line that a program complained with."""
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else "no message"
