"""Programs of the corral-net image: the mesh of a node, and the web server of a gateway."""
