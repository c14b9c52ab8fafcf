"""Programs of the corral-ray image: the launcher of a node's workload and the process that becomes `ray start`."""
