"""Run Keystone in one process: prepare its state the first time, fill it, serve it.

usage: keystone_serve.py CONF FOLDER ADDRESS PORT. The environment has what `keystone-manage
bootstrap` and seed_allas.py need, passwords among it, since every user can read the arguments.
"""

import os
import shutil
import sys
import threading
import types
from pathlib import Path

conf, folder, address, port = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
os.environ["OS_KEYSTONE_CONFIG_FILES"] = conf
sys.argv = sys.argv[:1]  # Keystone parses the rest itself


def leave_out_saml() -> None:
    """Put a module in the place of pysaml2's XML schemas, whose reading takes 0.6 s of a processor.

    Keystone imports them at every start. Nobody logs in by SAML here: a document is refused.
    """

    class XMLSchemaError(Exception):
        """A SAML document."""

    def validate(*_: object) -> None:
        raise XMLSchemaError("this Keystone takes no SAML documents")

    schema = types.ModuleType("saml2.xml.schema")
    schema.__dict__.update(XMLSchemaError=XMLSchemaError, validate=validate)
    sys.modules[schema.__name__] = schema


def manage(*command: str) -> None:
    """Run a keystone-manage command in a fork: its imports, most of its time, are done once."""
    from keystone.cmd import cli

    child = os.fork()
    if child == 0:
        cli.main(["keystone-manage", "--config-file", conf, *command])
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code != 0:
        sys.exit(f"keystone-manage {' '.join(command)} ended with exit code {code}")


def prepare() -> None:
    """Make database, keys and the first administrator; the mark comes last."""
    mark = folder / "prepared"
    if mark.exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    for kind in ("fernet", "receipt", "credential"):
        (folder / f"{kind}-keys").mkdir(mode=0o700, parents=True)
    manage("db_sync")
    owner = ["--keystone-user", "root", "--keystone-group", "root"] if os.getuid() == 0 else []
    for kind in ("fernet", "receipt", "credential"):
        manage(f"{kind}_setup", *owner)
    manage("bootstrap")
    mark.touch()


def seed() -> None:
    """Fill Keystone through its own API."""
    import seed_allas

    seed_allas.main(folder / "seeded")


def give_up(failure: threading.ExceptHookArgs) -> None:
    """End with the traceback when seeding failed; the supervisor starts us again."""
    threading.__excepthook__(failure)
    os._exit(1)


leave_out_saml()
prepare()
import waitress  # noqa: E402 - the fork above must come before threads
from keystone.wsgi.api import application  # noqa: E402

# One request at a time: a failed login reads and then writes its counter in one transaction, and
# of two such SQLite refuses one at once, whatever its timeout ("database is locked": a 500).
server = waitress.create_server(application, host=address, port=port, threads=1, ident="keystone")
threading.excepthook = give_up
threading.Thread(target=seed, daemon=True).start()  # the port is open: requests wait for run()
server.run()
