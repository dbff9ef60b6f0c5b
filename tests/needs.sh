# Sourced by run, demo and bench: installs the Debian packages that are missing. Owns: the list. Never: upgrades one.

# need PACKAGE PROGRAM...: the package is installed if a program is not there.
missing=
need() {
    package=$1
    shift
    for program in "$@"; do
        command -v "$program" >/dev/null 2>&1 || [ -e "$program" ] || { missing="$missing $package"; return; }
    done
}

install_missing() {
    [ -n "$missing" ] || return 0
    if [ "$(id -u)" != 0 ]; then
        echo "not installed:$missing (needs root to install)" >&2
        return 0
    fi
    if ! command -v apt-get >/dev/null 2>&1; then
        echo "not installed:$missing (no apt-get here; install them by your own package manager)" >&2
        return 0
    fi
    echo "installing:$missing"
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2086
    apt-get install -qq -y --no-install-recommends $missing >/dev/null 2>&1 ||
        { apt-get update -qq && apt-get install -qq -y --no-install-recommends $missing >/dev/null; }
}

# What cargo and rustup put beside the system's programs, also under sudo.
for dir in "${CARGO_HOME:-$HOME/.cargo}/bin" "/home/${SUDO_USER:-root}/.cargo/bin" /root/.cargo/bin; do
    case ":$PATH:" in *":$dir:"*) ;; *) [ -d "$dir" ] && PATH="$PATH:$dir" ;; esac
done
PATH="$PATH:/usr/sbin:/sbin"
export PATH
command -v cargo >/dev/null 2>&1 || { echo "cargo is not installed: see https://rustup.rs" >&2; exit 1; }
