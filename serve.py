"""Serves models by deadline and priority on this machine, or replays a workload against it.

Examples:
  python serve.py                                      the built-in models over HTTP on 127.0.0.1:8000
  python serve.py --policy ppo --grpc                  the trained policy; gRPC on port 8001, too
  python serve.py --models bert,mobilenet              some of the built-in models
  python serve.py --models models.yaml                 your own: files or factories, with shapes, priorities, timeouts
  python serve.py --replay poisson --load 0.9          offer 90 % of the measured capacity, print the table, exit
  python serve.py --replay twin:azure_llm_2023 --load 1.1 --duration 30 --policy edf
  python serve.py --record run --logdir tb --trace timeline.json
  python serve.py --config serve.yaml --port 9000      settings from a file; flags win

SIGINT and SIGTERM drain and exit with status 0; a second one ends at once. SIGHUP reads the policy's checkpoint again.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from dataclasses import fields

from jsonargparse import ArgumentParser

from serving.config import ServeConfig
from serving.observers.logs import set_up_logging
from traces.errors import InputError


def parse(argv: list[str] | None = None) -> ServeConfig:
    """Settings from flags and a YAML file; exits with status 2 on a flag that it does not know.

    Raises:
        InputError: a setting is out of range.
    """
    parser = ArgumentParser(prog="serve.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", action="config", help="YAML file of settings; flags after it win")
    parser.add_class_arguments(ServeConfig, as_group=False)
    words = sys.argv[1:] if argv is None else argv
    settings = parser.parse_args(_spelled_out(words)).as_dict()
    settings.pop("config", None)
    return ServeConfig(**settings)


def _spelled_out(words: list[str]) -> list[str]:
    """Flags as the parser wants them: --log-json becomes --log_json=true, and --drain-timeout 5, --drain_timeout 5."""
    switches = {f"--{f.name}" for f in fields(ServeConfig) if f.type == "bool"}
    result = []
    for word, after in zip(words, [*words[1:], ""]):
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            name = "--" + name[2:].replace("-", "_")
            if name in switches and not equals and after not in ("true", "false"):
                equals, value = "=", "true"
        result.append(name + equals + value)
    return result


def main(argv: list[str] | None = None) -> int:
    """Command line. Returns the exit status."""
    try:
        config = parse(argv)
        set_up_logging(config.log_level, config.log_json)
        # Imported after the flags are read, so that --help does not wait for torch.
        from serving.lifecycle import run

        with asyncio.Runner(loop_factory=_loop) as runner:
            return runner.run(run(config))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


if __name__ == "__main__":
    sys.exit(main())
