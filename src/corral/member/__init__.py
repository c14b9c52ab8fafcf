"""The program of a member of a mesh: standard library only, because it also runs where nothing is installed."""
