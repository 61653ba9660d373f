"""Installs Debian's Chromium for the browser test where there is none and the user may; says so either way."""

import os
import shutil
import subprocess
import sys
import threading
import time

if any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
    sys.exit()
if os.geteuid() != 0 or not shutil.which("apt-get"):
    sys.exit(
        print("browser: no Chromium, and not the privilege to install it: the browser test will be skipped", flush=True)
    )

start = time.monotonic()


def beat():
    while True:
        time.sleep(8)
        print(f"browser: installing Chromium, {time.monotonic() - start:.0f} s", flush=True)


threading.Thread(target=beat, daemon=True).start()
quiet = {
    "stdout": subprocess.DEVNULL,
    "stderr": subprocess.DEVNULL,
    "env": os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
}
for command in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", "chromium"]):
    if subprocess.run(command, **quiet).returncode:
        sys.exit(print(f"browser: `{' '.join(command)}` failed: the browser test will be skipped", flush=True))
print(f"browser: Chromium installed in {time.monotonic() - start:.0f} s", flush=True)
