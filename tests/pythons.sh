#!/usr/bin/env bash
# Install the package on each Python that it promises, and run a quick subset of the tests there.
# Usage: tests/pythons.sh [--except VERSION] [VERSION …]; all promised versions by default.
# An interpreter is looked for on PATH, then among pyenv's. A missing one is skipped.
set -euo pipefail
cd "$(dirname "$0")/.."

mapfile -t PROMISED < <(sed -n 's/.*"Programming Language :: Python :: \(3\.[0-9]*\)".*/\1/p' pyproject.toml)
# What depends on the Python most: asyncio, http, and a whole server over a socket. Without core
# and the dialects, which are pure, and the property tests, which take ten times as long.
SUBSET=(
    -m "not slow and not hypothesis"
    tests/transport tests/test_proxy.py tests/test_asgi.py
)
SUBSET_TIMEOUT_S=600

is_usable() { # whether $1 runs and is Python $2: pyenv's shims stand on PATH for every version
    [ "$("$1" -c 'import sys, venv; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" = "$2" ]
}

find_python() { # print the path of Python $1
    local candidate versions="${PYENV_ROOT:-$HOME/.pyenv}/versions"
    {
        command -v "python$1" || true
        find "$versions" -mindepth 1 -maxdepth 1 -name "$1.*" 2>/dev/null | sort -rV |
            sed "s,\$,/bin/python,"
    } | while read -r candidate; do
        if is_usable "$candidate" "$1"; then
            echo "$candidate"
            break
        fi
    done || true # no folder of pyenv's, or a pipe that is closed early
}

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
skipped=()
failed=()
except=
if [ "${1:-}" = --except ]; then
    except=$2
    shift 2
fi
for version in "${@:-${PROMISED[@]}}"; do
    [ "$version" != "$except" ] || continue
    python=$(find_python "$version")
    if [ -z "$python" ]; then
        echo "== Python $version: skipped, no interpreter found"
        skipped+=("$version")
        continue
    fi
    echo "== Python $version: $python"
    "$python" -m venv "$folder/$version"
    PYTHONPYCACHEPREFIX="$folder/compiled" "$folder/$version/bin/pip" install --quiet --disable-pip-version-check -e '.[test]'
    # Its compiled modules are kept for its workers, and leave nothing in the tree.
    PYTHONPYCACHEPREFIX="$folder/compiled" timeout "$SUBSET_TIMEOUT_S" \
        "$folder/$version/bin/python" -m pytest -p no:cacheprovider "${SUBSET[@]}" ||
        failed+=("$version")
done
echo "== Python versions skipped: ${skipped[*]:-none}, failed: ${failed[*]:-none}"
[ ${#failed[@]} -eq 0 ]
