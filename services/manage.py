"""The operators' verbs, as the Makefile calls them: ``python -m services.manage [--config FILE] VERB``.

What a verb alone needs is imported in it: `run` stays in memory as long as the service.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from baselayer.config import ConfigError
from baselayer.postgres import PostgresError
from baselayer.supervision import Supervisor
from services import run as running
from services.errors import OperatorError
from shell_service.settings import Settings, load

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Chosen:
    """The configuration that a verb works with: its settings, and the file that was named, if one was."""

    settings: Settings
    overlay: Path | None


def say(line: str) -> None:
    """Print a line for people, at once."""
    click.echo(line)
    sys.stdout.flush()


class Verbs(click.Group):
    """Ends with one sentence and status 1 for what an operator can put right."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb."""
        try:
            return super().invoke(ctx)
        except (ConfigError, PostgresError, OperatorError) as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(1)


@click.group(cls=Verbs)
@click.option("--config", type=click.Path(path_type=Path), help="A file laid over config.yaml.")
@click.pass_context
def main(ctx: click.Context, config: Path | None) -> None:
    """Operate Shell Service."""
    overlay = config.absolute() if config else None
    ctx.obj = Chosen(load(overlay), overlay)


@main.command()
@click.pass_obj
def run(chosen: Chosen) -> None:
    """Run everything in the foreground until Ctrl-C."""
    from services import docs, layout

    layout.prepare_folders(chosen.settings)
    if not docs.is_current(chosen.settings):
        try:
            docs.build(chosen.settings, chosen.overlay, say)
        except docs.DocsError as error:
            say(f"[check] {error}")  # the service does not depend on it
    running.run(chosen.settings, chosen.overlay, say)


@main.command()
@click.pass_obj
def stop(chosen: Chosen) -> None:
    """Stop the running service."""
    say("stopped" if running.stop(chosen.settings, say) else "nothing runs here")


@main.command()
@click.pass_obj
def status(chosen: Chosen) -> None:
    """Show what runs; ends with 1 when something does not."""
    from services.status import report, terminal

    settings = chosen.settings
    programs = Supervisor(settings.socket_dir / "supervisor.sock", report.SECONDS).programs
    found = report.collect(programs, report.database_url(settings), settings.runner.lost_after)
    terminal.show(found)
    sys.exit(0 if found["status"] == "ok" else 1)


@main.command()
@click.pass_obj
def log(chosen: Chosen) -> None:
    """Follow the logs of all services until Ctrl-C."""
    from baselayer import logview

    if not any(chosen.settings.log_dir.glob("*.log")):
        click.echo(f"nothing has been logged to {chosen.settings.log_dir} yet: waiting for it", err=True)
    ended: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: ended.append(number))
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    try:
        logview.follow(chosen.settings.log_dir, write, colour, lambda: bool(ended))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@main.command()
@click.pass_obj
def monitor(chosen: Chosen) -> None:
    """Open supervisor's prompt."""
    configuration = chosen.settings.run_dir / "supervisord.conf"
    if not (chosen.settings.socket_dir / "supervisor.sock").exists():
        raise running.RunError("nothing runs here: `make run` starts it")
    say("supervisor's prompt: `status`, `restart app:*`, `tail -f runner:runner_00`, `help`; `exit` leaves it")
    command = [sys.executable, "-m", "supervisor.supervisorctl", "-c", str(configuration), "-i"]
    sys.exit(running.hand_over(command))


@main.command()
@click.pass_obj
def doc(chosen: Chosen) -> None:
    """Build the documentation site."""
    from services import docs, layout

    layout.prepare_folders(chosen.settings)
    docs.build(chosen.settings, chosen.overlay, say)
    say(f"built: {chosen.settings.base_url}/ while the service runs, {chosen.settings.site_dir}/index.html otherwise")


@main.command("db_init")
@click.option("--admin-url", default="", help="URL of a role that may create roles and databases.")
@click.pass_obj
def db_init(chosen: Chosen, admin_url: str) -> None:
    """Create the database."""
    from services import database

    database.initialise(chosen.settings, say, admin_url)


@main.command("db_migrate")
@click.pass_obj
def db_migrate(chosen: Chosen) -> None:
    """Bring the database to the newest schema."""
    from services import database

    database.migrate_now(chosen.settings, say)


@main.command("db_clear")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def db_clear(chosen: Chosen, yes: bool) -> None:
    """Delete all jobs, users and tokens."""
    from services import database

    database.clear(chosen.settings, say, lambda question: yes or click.confirm(question))


@main.command("db_shell")
@click.option("--owner", is_flag=True, help="As the role that owns the schema, which may do everything.")
@click.pass_obj
def db_shell(chosen: Chosen, owner: bool) -> None:
    """Open psql on the database, as the role of the services."""
    from services import database

    sys.exit(database.shell(chosen.settings, owner))


@main.command("load_demo_data")
@click.pass_obj
def load_demo_data(chosen: Chosen) -> None:
    """Add demo users, and their tokens to the tokens file."""
    from services import database

    database.load_demo_data(chosen.settings, say)


@main.command("rotate_secrets_key")
@click.pass_obj
def rotate_secrets_key(chosen: Chosen) -> None:
    """Seal all secrets with a new key."""
    from services import database

    database.rotate_secrets_key(chosen.settings, say)


@main.command("retention")
@click.pass_obj
def retention(chosen: Chosen) -> None:
    """Show what retention would remove now, and remove nothing."""
    from services import database

    database.show_retention(chosen.settings, say)


@main.command("audit_verify")
@click.option("--head", default="", help="A digest that was shown before: look for it among the seals.")
@click.pass_obj
def audit_verify(chosen: Chosen, head: str) -> None:
    """Hold the audit log against its seals; ends with 1 when it is not as it was."""
    from services import database

    sys.exit(0 if database.verify_audit(chosen.settings, say, head) else 1)


@main.command("tls_self_signed")
@click.pass_obj
def tls_self_signed(chosen: Chosen) -> None:
    """Write a certificate and a key for tests into the data folder."""
    folder = chosen.settings.data_dir / "tls"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    names = f"subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1,DNS:{os.uname().nodename}"
    command = [
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
        *("-days", "365", "-subj", "/CN=localhost", "-addext", names, "-keyout", str(key), "-out", str(certificate)),
    ]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, umask=0o077, timeout=60)
    except FileNotFoundError:
        raise running.RunError("openssl is not installed") from None
    except subprocess.CalledProcessError as error:
        raise running.RunError(f"openssl failed: {error.stderr.strip()}") from error
    say(f"Put this into your configuration:\nserver:\n  tls:\n    certificate: {certificate}\n    key: {key}")


if __name__ == "__main__":
    main(prog_name="manage")
