#!/bin/sh
# Runs in the new root. What an administrator in a hurry would have done.
set -eu
sed -i 's/^#\?PermitRootLogin .*/PermitRootLogin yes/' /etc/ssh/sshd_config
