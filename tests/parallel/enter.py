"""``python -m parallel.enter PID WORDS``: this Python with WORDS in the network of process PID."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    pid, *words = sys.argv[1:]
    os.execvp("nsenter", ["nsenter", "--target", pid, "--net", sys.executable, *words])
