"""Starts a worker of the tests' clusters with its job's environment, as Ray's program of this name does.

Ray's own imports Ray for it, and the worker does again: half a CPU second in each of some hundred processes.
"""

import argparse
import json
import os
import sys

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--serialized-runtime-env-context", type=json.loads, default={})
    parser.add_argument("--language")
    given, worker = parser.parse_known_args()
    if prefix := given.serialized_runtime_env_context.get("command_prefix"):
        sys.exit(f"the tests' clusters support no command prefix: {prefix}")
    os.environ |= given.serialized_runtime_env_context.get("env_vars", {})
    os.execv(sys.executable, [sys.executable, *worker])  # noqa: S606
