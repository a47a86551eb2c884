#!/usr/bin/env bash
# Runs the preset this file is named after; every flag goes to train.py. See README.md.
exec bash "$(dirname "$0")/../../common/launch.sh" "$0" "$@"
