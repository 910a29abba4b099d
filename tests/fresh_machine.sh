#!/usr/bin/env bash
# What a newcomer sees: README.md's commands in a clone of this tree's HEAD on a bare Debian, with times. As root, where
# debootstrap is installed and Debian's and Python's package indexes can be reached. About 5 minutes, without the tests.
#
#   tests/fresh_machine.sh bookworm [FOLDER]   Debian 12, Python 3.11; its root stays in FOLDER, and is used again
#   tests/fresh_machine.sh trixie [FOLDER]     Debian 13, Python 3.13
#   JEA_FRESH_TESTS=1                          README's second command too: the tests
set -euo pipefail
exec 3>&1
suite=${1:?bookworm or trixie} root=${2:-$(mktemp -d)} tree=$(cd "$(dirname "$0")/.." && pwd)
[ $# -gt 1 ] || trap 'rm -rf --one-file-system "$root"' EXIT
mkdir -p "$root"

step() {  # step WHAT COMMAND...
  local what=$1 began=$SECONDS
  shift
  "$@" || { echo "fresh_machine: $what: failed after $((SECONDS - began)) s" >&2; exit 1; }
  echo "== $what: $((SECONDS - began)) s" >&3
}

inside() {  # inside USER COMMAND: in a mount and process space of its own, which takes its mounts and processes along
  unshare --mount --pid --fork bash -c '
    mount -t proc proc "$1/proc" && mount --rbind /dev "$1/dev" && mount --make-rslave "$1/dev" &&
    exec chroot "$1" su - "$2" -s /bin/bash -c "$3"' bash "$root" "$1" "$2"
}

[ -e "$root/etc/debian_version" ] ||
  step "debootstrap $suite" debootstrap --variant=minbase "$suite" "$root" "${DEBIAN_MIRROR:-http://deb.debian.org/debian}" >"$root.log"
cp --remove-destination "$(realpath /etc/resolv.conf)" "$root/etc/resolv.conf"
# Where a proxy stands between: its certificate, and what pip was told of it.
settings="export DEBIAN_FRONTEND=noninteractive LANG=C.UTF-8"
if [ -f "${SSL_CERT_FILE:-}" ]; then
  cp "$SSL_CERT_FILE" "$root/etc/host-certificates.crt"
  settings+=" PIP_CERT=/etc/host-certificates.crt SSL_CERT_FILE=/etc/host-certificates.crt"
fi

step "system packages" inside root "$settings; apt-get update -q && apt-get install -qy --no-install-recommends g++ python3-dev python3-venv" >"$root.apt.log"
inside root "id newcomer 2>/dev/null >&2 || useradd -m newcomer"
rm -rf "$root/home/newcomer/jea" "$root/home/newcomer/.cache"
git clone -q "$tree" "$root/home/newcomer/jea"
chown -R --reference="$root/home/newcomer" "$root/home/newcomer"

python="cd jea; . .venv/bin/activate; $settings"
step "virtual environment" inside newcomer "cd jea && python3 --version && python3 -m venv .venv"
step "pip install -e ." inside newcomer "$python; pip install -q -e ."
step "python test.py" inside newcomer "$python; python test.py"
inside newcomer "$python; ls results/*/pictures/*.png | wc -l; jea info"
[ "${JEA_FRESH_TESTS:-}" != 1 ] ||
  step "the tests" inside newcomer "$python; pip install -q -e '.[test]' && python -m pytest"
echo "== all of it on $suite: $SECONDS s, $(nproc) cores"
