"""
Messages between the parts, versioned: `agent` for hosts (msgspec), `api` for people (Pydantic), `problem` for errors.

The control plane, the agent and the SDK import the same definitions, so that a message has one meaning.
"""
