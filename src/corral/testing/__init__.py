"""What tests need in place of the world: clocks, ids, a PostgreSQL, fakes that keep the real thing's contract."""
