#!/bin/sh
# Find a Python that will do, let it set up the environment (provision.py), print the path of the environment's python.
# PYTHON=/path/to/python chooses; otherwise the first of these that is new enough and can make environments.
set -eu
cd -- "$(dirname -- "$0")"

for python in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
    # Exit status 3: too old, 4: Debian's python3 without python3-venv, anything else: not there.
    status=0
    "$python" -c 'import sys
if sys.version_info < (3, 11): sys.exit(3)
try: import ensurepip, venv
except ImportError: sys.exit(4)' 2>/dev/null || status=$?
    case $status in
        0) exec "$python" provision.py venv ;;
        3) echo "$python is too old: Python 3.11 or newer is needed" >&2 ;;
        4) echo "$python cannot make environments: apt install python3-venv (or your distribution's name for it)" >&2 ;;
        *) [ -z "${PYTHON:-}" ] || echo "$python does not run" >&2 ;;
    esac
done
echo "no suitable Python found; PYTHON=/path/to/python ./demo chooses one" >&2
exit 1
