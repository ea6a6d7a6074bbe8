"""What vLLM serves with the plugin, against transformers with the same cut: `python -m tests.serving [--short]`.

In an environment of its own, which docs/serving.md says how to build; random small checkpoints, no download.
"""

import argparse
import os
import sys
from pathlib import Path

from tests.serving.torchvision_cpu import sitecustomize

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in this process, where its config can be changed
}
FITTING = str(Path(sitecustomize.__file__).parent)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.serving", description=__doc__)
    parser.add_argument("--short", action="store_true", help="three methods and LLaVA-1.5 alone")
    short = parser.parse_args().short
    os.environ |= ENVIRONMENT
    path = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if sitecustomize.needed() and FITTING not in path:  # from their start, in the processes of vLLM too
        os.environ["PYTHONPATH"] = os.pathsep.join([FITTING, *filter(None, path)])
        os.execv(sys.executable, [sys.executable, "-m", "tests.serving", *sys.argv[1:]])
    from tests.serving import compare  # reads the environment

    compare.run(short)


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # engines' threads would go on
