#!/bin/sh
# Runs in the new root. Debian's own welcome page would say that nobody uses this server.
set -eu
rm -f /var/www/html/index.nginx-debian.html
