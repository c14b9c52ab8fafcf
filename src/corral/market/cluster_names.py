"""Names for clusters whose renters gave none."""

from corral.core.randomness import Randomness

# fmt: off
_QUALITIES = (
    "amber", "brave", "brisk", "calm", "clear", "bold", "eager", "fair", "fleet", "gentle", "glad", "grand", "keen",
    "kind", "light", "lively", "loyal", "merry", "mild", "noble", "plain", "proud", "quick", "quiet", "rapid",
    "ready", "sharp", "steady", "sunny", "swift", "tidy", "warm",
)
_BEASTS = (
    "badger", "beaver", "bison", "colt", "crane", "deer", "dingo", "eagle", "ermine", "falcon", "ferret", "finch",
    "fox", "gazelle", "heron", "horse", "ibex", "jackal", "kestrel", "lark", "lynx", "marten", "mustang", "otter",
    "owl", "pony", "puma", "raven", "robin", "stork", "swan", "wolf",
)
# fmt: on


def made_name(randomness: Randomness) -> str:
    """A name such as `brisk-heron-4821`: a valid DNS label, one of ten million."""
    drawn = randomness.bytes(4)
    number = int.from_bytes(drawn[2:], "big") % 10_000
    return f"{_QUALITIES[drawn[0] % len(_QUALITIES)]}-{_BEASTS[drawn[1] % len(_BEASTS)]}-{number:04d}"
