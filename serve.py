"""Serves models by deadline and priority on this machine, or replays a workload against it.

Examples:
  python serve.py                                      the built-in models over HTTP on 127.0.0.1:8000
  python serve.py --policy ppo --grpc                  the trained policy; gRPC on port 8001, too
  python serve.py --models bert,mobilenet              some of the built-in models
  python serve.py --models models.yaml                 your own: files or factories, with shapes, priorities, timeouts
  python serve.py --replay poisson --load 0.9          offer 90 % of the measured capacity, print the table, exit
  python serve.py --replay twin:azure_llm_2023 --load 1.1 --duration 30 --policy edf
  python serve.py --record run --logdir tb --timeline timeline.json
  python serve.py --config serve.yaml --port 9000      settings from a file; flags win
  python serve.py --peer_port 9100                     a replica, which takes requests of doors on port 9100, too
  python serve.py --peers host1:9100,host2:9100        a door: listens, and sends each request to one of two replicas
  python serve.py --cluster auto --replicas 8          a door that starts its replicas on a Ray cluster (strait-rl[ray])

SIGINT and SIGTERM drain and exit with status 0; the same again ends at once. SIGHUP reads the policy's checkpoint again. A
model that crashes the process (a segmentation fault) ends it by that signal, with a line that names the signal.
"""

from __future__ import annotations

import faulthandler
import gc
import signal
import sys
import threading

if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
    # Before the seconds of imports: there is no policy to reload yet, and a reload must not end a server that begins.
    signal.signal(signal.SIGHUP, lambda *_: None)

from serving.config import ServeConfig
from serving.loop import run_on_loop
from serving.observers.logs import set_up_logging
from traces.command import run_command


def serve(config: ServeConfig) -> None:
    """Serve until the process is stopped."""
    set_up_logging(config.log_level, config.log_json)
    # Imported after the flags are read, so that --help does not wait for torch. Collecting garbage meanwhile would find none,
    # and take a sixth of the time.
    gc.disable()
    if config.cluster is not None:
        from serving.ray.run import run_on_ray as run
    elif config.peers:
        from serving.door import run_door as run
    else:
        from serving.server import run_server as run
    gc.enable()

    run_on_loop(run(config))


def main(argv: list[str] | None = None) -> int:
    """Command line. Returns the exit status."""
    return run_command(serve, ServeConfig, argv, "serve.py", __doc__)


if __name__ == "__main__":
    faulthandler.enable()
    sys.exit(main())
