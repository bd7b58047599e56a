"""The command `keras-deepseek studio`: shows the run records of a folder in the browser."""

import argparse

NAME = "studio"
HELP = "show the trainings of a folder in the browser: curves, model, where the time goes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `keras-deepseek studio` to its parser."""
    parser.set_defaults(backend=None)  # It has no use for Keras.
    parser.add_argument(
        "folder", nargs="?", default="runs", help="the folder of the run records (default: runs)"
    )
    parser.add_argument(
        "--port", type=int, default=6006, help="on loopback; if taken, the next one (default: 6006)"
    )
    parser.add_argument(
        "--dashboard-config",
        metavar="FILE",
        help="a YAML or JSON file with title, panels, hidden and thresholds",
    )
    parser.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name other than localhost by which a proxy calls the page; can be repeated",
    )
    parser.add_argument(
        "--report", metavar="HTML", help="write the page as one HTML file and serve nothing"
    )


def run(arguments: argparse.Namespace) -> None:
    """Serves until Ctrl-C, or writes the report.

    Raises:
        KerasDeepSeekError: The folder is missing, an argument is wrong, or the report can't be
            written.
    """
    import secrets
    from pathlib import Path

    from keras_deepseek.checks import check_integer
    from keras_deepseek.errors import InvalidInputError
    from keras_deepseek.studio.dashboard import Dashboard, read_dashboard
    from keras_deepseek.studio.server import StudioServer
    from keras_deepseek.studio.snapshot import make_report, write_report
    from keras_deepseek.studio.store import Store

    check_integer("--port", arguments.port, minimum=0)
    folder = Path(arguments.folder)
    if not folder.exists():
        raise InvalidInputError(
            f"No folder at {arguments.folder!r}. Name the folder of the run records, which "
            "`launch_studio` and `RunRecorder` write."
        )
    config = arguments.dashboard_config
    dashboard = Dashboard() if config is None else read_dashboard(config)
    store = Store(folder, dashboard.thresholds)
    if arguments.report:
        write_report(arguments.report, make_report(store, dashboard))
        return
    secret = secrets.token_urlsafe(24)
    with StudioServer(store, secret, arguments.port, dashboard, arguments.allowed_host) as server:
        print(f"Studio: {server.url}", flush=True)
        server.serve_forever()
