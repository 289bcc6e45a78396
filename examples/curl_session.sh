#!/bin/sh
# A session with curl, with a proxy that runs on port 11435, or on $LLMPROXY_URL: a model,
# a whole response, a streamed one with its usage, an error that names the field.
# Leaves out keys (add -H 'authorization: Bearer KEY' if the proxy asks for one).
set -eu
url=${LLMPROXY_URL:-http://127.0.0.1:11435}

curl -sS "$url/v1/models/demo"; echo

curl -sS "$url/v1/chat/completions" \
  -d '{"model": "demo", "messages": [{"role": "user", "content": "Hello!"}]}'; echo

curl -sSN "$url/v1/chat/completions" -d '{
  "model": "demo", "stream": true, "stream_options": {"include_usage": true},
  "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello!"}]}'

curl -sS "$url/v1/chat/completions" -d '{"model": "demo", "messages": [{"role": "user"}]}'; echo
