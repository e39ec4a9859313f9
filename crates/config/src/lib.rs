//! stack.yaml: defaults, secrets, JSON Schema and errors that point at the line.
