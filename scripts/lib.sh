# Sourced by the scripts: where things are, what must be installed, and how a build is made. Needs bash.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${SQD_VENV:-$root/.venv}

build_packages=(gcc libc6-dev meson ninja-build pkg-config libmicrohttpd-dev libjansson-dev libuv1-dev libsystemd-dev libpcre2-dev)
test_packages=(libcmocka-dev clang-format-14 python3-venv systemd scdoc libasan8 libtsan2 libubsan1 binutils procps)

say() { printf '\033[1m%s\033[0m\n' "$*" >&2; }

# Installs what is missing of the named Debian packages; without root it says what to install.
need_packages() {
    local missing=() p
    for p in "$@"; do
        dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing+=("$p")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    if [ "$(id -u)" -ne 0 ]; then
        echo "missing packages; as root: apt-get install ${missing[*]}" >&2
        exit 69
    fi
    say "installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# Python tools for the tests, pinned.
need_venv() {
    if [ ! -e "$venv/.done" ] || ! cmp -s "$root/tests/requirements.txt" "$venv/.done"; then
        say "making the Python environment for the tests"
        python3 -m venv "$venv"
        "$venv/bin/pip" install -q --disable-pip-version-check -r "$root/tests/requirements.txt"
        cp "$root/tests/requirements.txt" "$venv/.done"
    fi
}

# configure DIR OPTIONS...: sets up a build folder once, or brings its options up to date.
configure() {
    local dir=$1
    shift
    if [ -e "$dir/build.ninja" ]; then
        meson configure "$dir" "$@" >/dev/null
    else
        meson setup "$dir" "$root" "$@" >"$dir.log" 2>&1 || { cat "$dir.log" >&2; return 1; }
        rm -f "$dir.log"
    fi
}
