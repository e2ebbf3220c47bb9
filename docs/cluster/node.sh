#!/usr/bin/env bash
# Makes a machine ready to be a node: latentune in a virtual environment, and ~/.latentune/env, which ~/.bashrc reads, and
# so every command that Ray's cluster launcher runs.
#
#   node.sh [PACKAGE...]      packages that this cluster needs besides, as its cloud's client
#
# From the environment, and kept in ~/.latentune/env for searches on the cluster:
#   LATENTUNE_RUNS_DIR        a folder that all nodes share (or s3://bucket/prefix): where searches are kept
#   LATENTUNE_DATA_DIR        where data sets are
# and
#   LATENTUNE_VENV            a virtual environment that has latentune already, as one on a disk that all nodes share
#   LATENTUNE_NFS             HOST:/PATH to mount on the folder above LATENTUNE_RUNS_DIR
set -euo pipefail
umask 077
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
settings=$HOME/.latentune
mkdir -p "$settings"

if [[ -n ${LATENTUNE_NFS:-} ]]; then
    share=$(dirname "$LATENTUNE_RUNS_DIR")
    command -v mount.nfs4 > /dev/null || { sudo apt-get update -qq && sudo apt-get install -y -qq nfs-common; }
    sudo mkdir -p "$share"
    mountpoint -q "$share" || sudo mount -t nfs4 -o nfsvers=4.1,hard,timeo=600,retrans=2,noresvport "$LATENTUNE_NFS" "$share"
    sudo install -d -o "$(id -u)" -g "$(id -g)" "$LATENTUNE_RUNS_DIR" ${LATENTUNE_DATA_DIR:+"$LATENTUNE_DATA_DIR"}
fi

venv=${LATENTUNE_VENV:-}
if [[ -z $venv ]]; then
    venv=$HOME/latentune-venv
    python=${PYTHON:-python3}
    if ! "$python" -c 'import ensurepip' 2> /dev/null; then
        sudo apt-get update -qq && sudo apt-get install -y -qq python3-venv
    fi
    [[ -x $venv/bin/pip ]] || "$python" -m venv "$venv"
    # A copy, since building writes beside the sources, and Ray compares those with what it sent.
    rm -rf "$settings/sources" && cp -r "$project" "$settings/sources"
    extras=postgres
    case ${LATENTUNE_RUNS_DIR:-} in s3://*) extras+=,s3 ;; gs://*) extras+=,gs ;; esac
    "$venv/bin/pip" install --quiet --constraint "$project/constraints.txt" "$settings/sources[$extras]" "$@"
fi

{
    echo "export PATH=$(printf %q "$venv/bin"):\$PATH"
    echo "export RAY_AUTH_MODE=token"         # whoever has not got ~/.ray/auth_token is refused
    echo "export RAY_USAGE_STATS_ENABLED=0"
    for name in LATENTUNE_RUNS_DIR LATENTUNE_DATA_DIR; do
        [[ -z ${!name:-} ]] || echo "export $name=$(printf %q "${!name}")"
    done
    echo "[ ! -r $(printf %q "$settings/services") ] || . $(printf %q "$settings/services")" # see services.sh
} > "$settings/env"
grep -qsF .latentune/env "$HOME/.bashrc" || echo '. ~/.latentune/env' >> "$HOME/.bashrc"
