"""Pure rules that both sides run: the mesh's addresses and its signed roster."""
