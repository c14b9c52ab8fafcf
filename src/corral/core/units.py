"""Units that appear in more than one part."""

GIB = 1024**3
MIB = 1024**2
GB = 10**9
HOUR_S = 3600
MINUTE_S = 60
