"""Measurements. Each module runs alone: `scripts/bench NAME [--quick]`."""
