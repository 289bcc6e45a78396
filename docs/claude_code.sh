#!/bin/sh
# Try Claude Code (npm install -g @anthropic-ai/claude-code) with llmproxy by hand: start a
# proxy that answers everything with the model $1 (by default demo), ask one question, and
# show what was logged. It uses temporary folders and leaves yours alone.
set -eu
model=${1:-demo}
folder=$(mktemp -d)
export LLM_USER_PATH="${LLM_USER_PATH:-$folder/llm}"

python3 -m llmproxy --port 11436 --default-model "$model" >"$folder/proxy.log" &
proxy=$!
trap 'kill $proxy; wait $proxy || true' EXIT
until curl -fsS http://127.0.0.1:11436/healthz >/dev/null 2>&1; do sleep 0.2; done

mkdir "$folder/home" "$folder/work"
cd "$folder/work"
HOME="$folder/home" ANTHROPIC_BASE_URL=http://127.0.0.1:11436 ANTHROPIC_API_KEY=any \
  CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1 claude -p "say hello" </dev/null

cat "$folder/proxy.log"
python3 -m llmproxy log --last 5
