#!/bin/sh
# Gives Dagster its folder and its instance, then becomes the command of the service.
set -eu
umask 077
mkdir -p "$DAGSTER_HOME"
cp "${DAGSTER_YAML:-/etc/profilehouse/dagster.yaml}" "$DAGSTER_HOME/dagster.yaml"
exec "$@"
