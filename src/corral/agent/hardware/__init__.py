"""
What a host consists of, as found: processor, memory, disk, GPUs and the engine.

Nothing here decides anything, and nothing here fails: what cannot be found out becomes a note that says why.
"""

from corral.agent.hardware.engine import EngineFacts, engine_facts
from corral.agent.hardware.found import find_hardware

__all__ = ["EngineFacts", "engine_facts", "find_hardware"]
