#!/bin/sh
# Brings a virtual environment up to a list of pinned packages, and ssast_lobes
# itself in editable form. Does nothing when all is already as asked.
#
# usage: sh requirements/setup.sh VENV REQUIREMENTS LAST_PYTHON [PYTHON...]
#   LAST_PYTHON  the newest Python the pins have wheels for, as in 3.14
#   PYTHON       interpreters to try, in this order (default: python3, then
#                python3.13 down to python3.10)
set -eu
cd "$(dirname "$0")/.."
venv=$1
requirements=$2
last=$3
shift 3
[ $# -gt 0 ] || set -- python3 python3.13 python3.12 python3.11 python3.10

stamp=$venv/.set-up-done
# Holds the process id of the set-up that is under way, or was cut short.
mark=$venv/.set-up-running
# The folder counts too: an editable install points at it.
key=$(
    pwd
    cat requirements/setup.sh "$requirements" requirements/alone.txt \
        requirements/events.txt pyproject.toml setup.py ssast_lobes/version.txt | cksum
)

say() { echo "[set-up of $venv] $*" >&2; }
fail() {
    say "ERROR: $*"
    exit 1
}

# A name on the PATH need not run: pyenv leaves stand-ins for versions that are
# not switched on.
qualifies() {
    "$1" -c "
import sys
last = tuple(map(int, '$last'.split('.')))
sys.exit(not (3, 10) <= sys.version_info[:2] <= last)
" >/dev/null 2>&1
}

choose_python() {
    without_ensurepip=
    for candidate in "$@"; do
        qualifies "$candidate" || continue
        if "$candidate" -c "import ensurepip, venv" >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
        without_ensurepip=$candidate
    done
    [ -z "$without_ensurepip" ] || fail "$without_ensurepip cannot make" \
        "virtual environments. On Debian and Ubuntu: apt install" \
        "python3-venv. Then run the same command again."
    fail "needs Python 3.10 to $last, and none of these is one that runs: $*." \
        "Install one, or name it: make PYTHON=/path/to/python3."
}

while [ -f "$mark" ] && kill -0 "$(cat "$mark")" 2>/dev/null; do
    say "waiting for the set-up of process $(cat "$mark")" \
        "(if that is something else, delete $mark)"
    sleep 5
done

if [ ! -f "$mark" ] && [ "$key" = "$(cat "$stamp" 2>/dev/null)" ] &&
    qualifies "$venv/bin/python"; then
    exit 0
fi

reuse=yes
if [ -f "$mark" ]; then
    say "the last set-up was interrupted: starting over"
    reuse=no
elif ! qualifies "$venv/bin/python"; then
    reuse=no
fi

if [ $reuse = no ]; then
    python=$(choose_python "$@")
    say "making it with $python ($("$python" --version))"
    mkdir -p "$venv"
    # Marked first and emptied then, so that a kill at any point is seen.
    echo $$ >"$mark"
    find "$venv" -mindepth 1 -maxdepth 1 ! -path "$mark" -exec rm -rf {} +
    "$python" -m venv "$venv"
else
    echo $$ >"$mark"
fi
# Environments made by other tools may come without pip.
"$venv/bin/python" -m pip --version >/dev/null 2>&1 ||
    "$venv/bin/python" -m ensurepip

say "installing what $requirements names (the first time some minutes)"
export PIP_DISABLE_PIP_VERSION_CHECK=1
"$venv/bin/python" -m pip install --requirement "$requirements"
"$venv/bin/python" -m pip install --quiet --no-deps \
    --requirement requirements/alone.txt
"$venv/bin/python" -m pip install --quiet --no-deps \
    --requirement requirements/events.txt ||
    say "no metrics of sound events: building them needs a C compiler. Their" \
        "tests are skipped, and the recipes of events do not run."
# The pinned setuptools builds it: no isolated download of another one. In the
# mode "compat" the clone is on sys.path. Otherwise Python would take the clone
# for a package without code where a script lies in the folder above it.
"$venv/bin/python" -m pip install --quiet --no-deps --no-build-isolation \
    --config-settings editable_mode=compat --editable .

printf '%s\n' "$key" >"$stamp"
rm -f "$mark"
say "done: source $venv/bin/activate"
