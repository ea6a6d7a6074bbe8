"""The earlier name of `python -m models.check`."""

import runpy

if __name__ == "__main__":
    runpy.run_module("models.check", run_name="__main__", alter_sys=True)
