"""The process on a provider's machine: it finds the hardware, lends it, and keeps clusters' nodes as they should be."""
