"""What every domain of the control plane stands on: settings, PostgreSQL, nudges, logs, HTTP plumbing."""
