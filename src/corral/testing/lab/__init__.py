"""
The lab: several hosts on one machine, each with its own namespaces, Docker Engine and agent, on an internet of its own.

`lab.Lab` is the whole; `scripts/lab` is the same by hand. Nothing is imported here, so that the internet's process
starts at once.
"""
