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

# cuda_root NVCC: where the toolkit of this compiler lies; it may be a link or a wrapper.
cuda_root() {
    local top
    top=$("$1" --dryrun -E -x cu /dev/null 2>&1 | sed -n 's/^#. TOP=//p')
    [ -n "$top" ] && realpath "$top"
}

# Puts nvcc on the PATH where no CUDA toolkit is installed: the compiler, headers and libraries from PyPI, pinned, into build/.
need_cuda() {
    need_packages g++ make util-linux
    cuda_home=$(cuda_root nvcc || cuda_root /usr/local/cuda/bin/nvcc)
    [ -z "$cuda_home" ] || return 0
    local to=$root/build/cuda-toolkit pins=$root/tests/gpu/toolkit.txt
    if ! cmp -s "$pins" "$to/.done"; then
        say "fetching a CUDA toolkit"
        need_packages python3-venv
        rm -rf "$to"
        python3 -m venv "$to" &&
            "$to/bin/pip" install -q --disable-pip-version-check --no-deps -r "$pins" || return 1
        # what an installed toolkit has and the wheels have not
        (cd "$to"/lib/python3*/site-packages/nvidia/cu13 && ln -sfn lib lib64 &&
            for l in libcudart libcublasLt; do ln -sf $l.so.13 lib/$l.so; done) || return 1
        cp "$pins" "$to/.done"
    fi
    cuda_home=$(echo "$to"/lib/python3*/site-packages/nvidia/cu13)
    export PATH=$cuda_home/bin:$PATH
}

# configure DIR OPTIONS...: sets up a build folder once, or brings its options up to date; one that does not know them all yet is made anew.
configure() {
    local dir=$1
    shift
    [ ! -e "$dir/build.ninja" ] || ! meson configure "$dir" "$@" >/dev/null 2>&1 || return 0
    rm -rf "$dir"
    meson setup "$dir" "$root" "$@" >"$dir.log" 2>&1 || { cat "$dir.log" >&2; return 1; }
    rm -f "$dir.log"
}
