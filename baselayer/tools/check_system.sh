#!/bin/sh
# Makes sure that what the service needs from the system is there, and installs it where it may:
# on Debian and Ubuntu, as root or with sudo that asks for no password. Otherwise says exactly what to type.
# Usage: check_system.sh PYTHON [bench]; "bench" also looks for what is only measured against.
set -eu

python=${1:-python3}
purpose=${2:-run}
missing=""

say() { printf '[check] %s\n' "$*"; }

# at_least WANTED FOUND: whether the dotted version FOUND is WANTED or later
at_least() {
    [ "$(printf '%s\n%s\n' "$1" "$2" | sort -t. -k1,1n -k2,2n -k3,3n | head -n 1)" = "$1" ]
}

# check NAME WANTED FOUND PACKAGE
check() {
    if [ -z "$3" ]; then
        say "$1 $2 or later: missing"
        missing="$missing $4"
    elif at_least "$2" "$3"; then
        say "$1 $3"
    else
        say "$1 $2 or later: found $3, which is too old"
        missing="$missing $4"
    fi
}

find_all() {
    missing=""
    PATH="$PATH:/usr/sbin:/usr/local/sbin:/sbin"
    export PATH
    check Python 3.11 "$("$python" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null || true)" python3
    # Debian keeps this part of Python in a package of its own.
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        say "Python's venv: missing"
        missing="$missing python3-venv"
    fi
    check nginx 1.18 "$(nginx -v 2>&1 | sed -n 's|^nginx version: nginx/\([0-9.]*\).*|\1|p')" nginx
    if [ "$(uname)" = Linux ]; then
        [ "$purpose" != bench ] || check bubblewrap 0.8 "$(bwrap --version 2>/dev/null | sed -n 's|^bubblewrap \([0-9.]*\).*|\1|p')" bubblewrap
        if ! "$python" -c 'import ctypes; ctypes.CDLL("libseccomp.so.2")' 2>/dev/null; then
            say "libseccomp 2: missing"
            missing="$missing libseccomp2"
        fi
        # Optional: only jobs that may have the network need it.
        command -v slirp4netns >/dev/null 2>&1 || say "slirp4netns: not there, so no job can have the network (optional)"
    else
        say "this is not Linux: everything works but running jobs"
    fi
}

install_debian() {
    sudo=""
    [ "$(id -u)" = 0 ] || sudo="sudo -n"
    say "installing$missing"
    # The package would start an nginx of its own, now and at every boot. Ours is the supervisor's.
    policy=""
    if [ ! -e /usr/sbin/policy-rc.d ]; then
        policy=/usr/sbin/policy-rc.d
        trap '$sudo rm -f "$policy"' EXIT
        printf '#!/bin/sh\nexit 101\n' | $sudo tee "$policy" >/dev/null
        $sudo chmod 755 "$policy"
    fi
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get update -qq
    # shellcheck disable=SC2086 # words on purpose
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
    case "$missing" in
        *nginx*) ! command -v systemctl >/dev/null 2>&1 || $sudo systemctl disable nginx >/dev/null 2>&1 || true ;;
    esac
    if [ -n "$policy" ]; then
        $sudo rm -f "$policy"
        trap - EXIT
    fi
}

find_all
[ -n "$missing" ] || exit 0

if command -v apt-get >/dev/null 2>&1 && { [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null; }; then
    install_debian
    find_all
    [ -n "$missing" ] || exit 0
fi

fedora=$(printf '%s' "$missing" | sed 's/ python3-venv//; s/libseccomp2/libseccomp/')
brew=$(printf '%s' "$missing" | sed 's/ python3-venv//; s/python3/python@3.12/')
say "please install:$missing"
say "  Debian, Ubuntu: sudo apt-get install -y$missing"
say "  Fedora:         sudo dnf install -y$fedora"
say "  macOS:          brew install$brew"
exit 1
