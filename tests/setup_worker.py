"""Starts a worker of the test clusters with its job's environment, like Ray's own setup_worker.py.

Ray's program imports Ray, and the worker imports it again: half a CPU second in each of some hundred processes.
"""

import argparse
import json
import os
import sys

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--serialized-runtime-env-context", type=json.loads, default={})
    parser.add_argument("--language")
    args, worker = parser.parse_known_args()
    if prefix := args.serialized_runtime_env_context.get("command_prefix"):
        sys.exit(f"the test clusters do not support a command prefix: {prefix}")
    os.environ |= args.serialized_runtime_env_context.get("env_vars", {})
    os.execv(sys.executable, [sys.executable, *worker])  # noqa: S606
