#!/bin/sh
# Bring the logs of several hosts together: run it on a timer, as often as you like. What is
# there already is not imported again, so an overlap loses nothing and doubles nothing.
# usage: collect.sh DATABASE SINCE HOST… ; SINCE as `llmproxy log --since` takes it
set -eu
database=$1 since=$2
shift 2
for host in "$@"; do
    ssh "$host" LLM_USER_PATH=/var/lib/llmproxy /opt/llmproxy/bin/python -m llmproxy export - \
        --since "$since" | python3 -m llmproxy import - --host "$host" --database "$database"
done
