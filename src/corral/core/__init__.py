"""Words that every part shares: ids, money, time, randomness, errors. No I/O; imports nothing of ours."""
