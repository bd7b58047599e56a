"""One backend's checks, one after the other, in a process that `run.py` has started.

Each message is one line on the standard output: a mark, then JSON.
"""

import json
import sys
import traceback
from typing import Any

MARK = "@gpu_tests "


def say(event: str, **facts: Any) -> None:
    """Writes one message."""
    print(MARK + json.dumps({"event": event, **facts}), flush=True)


def main() -> None:
    """Runs the checks that the arguments name, as JSON."""
    request = json.loads(sys.argv[1])
    from gpu_tests.place import Place, Skipped, describe, prepare_cpu, visible_devices

    if request["device"] == "cpu":
        prepare_cpu()
    count, devices = visible_devices(request["device"])
    if not count:
        say("no device", why=devices)
        return
    from gpu_tests.checks import CHECKS
    from keras_deepseek.errors import MissingExtraError

    target = Place(request["device"], count, request["fault"])
    say("device", facts=describe(target))
    for name in request["checks"]:
        say("begin", check=name)
        try:
            result, text = "passed", CHECKS[name].load()(target)
        except (Skipped, MissingExtraError) as reason:
            result, text = "skipped", str(reason)
        except Exception as error:  # noqa: BLE001 - the next check is run all the same
            traceback.print_exc()
            result, text = "FAILED", f"{type(error).__name__}: {error}"
        say("end", check=name, result=result, text=text)


if __name__ == "__main__":
    main()
