#!/bin/sh
# Starts the program behind `--`, as `matrix-stack __exec` does, for tests that have no such program.
while [ "$1" != -- ]; do shift; done
shift
exec "$@"
