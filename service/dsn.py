"""What a database's URL must look like, checked before anything connects with it.

Pure. A password whose special characters are not escaped makes another part of the URL: libraries
would then quote it in their errors, as a port or a host. Here the error quotes nothing.
"""

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, SecretStr

_EXPECTED = (
    "postgresql://user:password@host:5432/database was expected (several hosts with commas "
    "between), with # / ? @ % in the password written %23 %2F %3F %40 %25"
)


def _check(dsn: SecretStr) -> SecretStr:
    if not _is_dsn(dsn.get_secret_value()):
        raise ValueError(_EXPECTED)
    return dsn


def _is_dsn(text: str) -> bool:
    try:
        parts = urlsplit(text)
    except ValueError:  # its message may quote the password
        return False
    login, _, hosts = parts.netloc.rpartition("@")
    ports = [host.rpartition("]")[2].partition(":")[2] for host in hosts.split(",")]
    return (
        parts.scheme in ("postgresql", "postgres")
        and not parts.fragment
        and "@" not in login
        and all(port.isdigit() or not port for port in ports)
    )


Dsn = Annotated[SecretStr, AfterValidator(_check)]
