"""The process of the server that `launch_studio` starts.

It reads its settings from the first line of the standard input, so that no other user sees the
secret in a list of processes, prints its port, and ends when the standard input closes.
"""

import json
import sys
import threading
from pathlib import Path

from keras_deepseek.errors import KerasDeepSeekError
from keras_deepseek.studio.dashboard import Dashboard, read_dashboard
from keras_deepseek.studio.server import StudioServer
from keras_deepseek.studio.store import Store


def main() -> int:
    """Serves until the standard input closes."""
    settings = json.loads(sys.stdin.readline())
    try:
        config = settings["dashboard_config"]
        dashboard = Dashboard() if config is None else read_dashboard(config)
        store = Store(Path(settings["folder"]), dashboard.thresholds)
        server = StudioServer(
            *(store, settings["secret"], settings["port"], dashboard, settings["allowed_hosts"])
        )
    except KerasDeepSeekError as error:
        print(json.dumps({"error": str(error)}), flush=True)
        return 2
    print(json.dumps({"port": server.server_port}), flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    while sys.stdin.readline():
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
