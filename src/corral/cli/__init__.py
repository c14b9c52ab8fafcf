"""The command line `corral`: one module per noun, written on the SDK alone."""
