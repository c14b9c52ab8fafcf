"""Assembly of the control plane: the application, its errors, its loops. Routes live in their domain."""
