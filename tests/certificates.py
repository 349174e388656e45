"""Certificates for tests: an authority of our own, and what it issued, good and bad."""

import ipaddress
import itertools
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

DAY = timedelta(days=1)
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Certificate:
    """The files of a server's certificate and its key."""

    chain: str
    key: str

    def server_tls(self) -> ssl.SSLContext:
        """Return a context for a server that shows this certificate."""
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(self.chain, self.key)
        return tls


class Authority:
    """A certificate authority that nobody knows but who asks it for `client_tls`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"CA {next(_numbers)}")])
        now = datetime.now(UTC)
        ca = x509.BasicConstraints(ca=True, path_length=0)
        builder = _builder(self._name, self._name, self._key, now - DAY, now + DAY)
        self._certificate = builder.add_extension(ca, critical=True).sign(
            self._key, hashes.SHA256()
        )

    def issue(self, *names: str, is_expired: bool = False) -> Certificate:
        """Return a certificate for hosts: names, or addresses."""
        now = datetime.now(UTC)
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
        end = now - DAY / 2 if is_expired else now + DAY
        certificate = (
            _builder(subject, self._name, key, now - DAY, end)
            .add_extension(x509.SubjectAlternativeName(list(map(_general, names))), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        path = self._folder / f"certificate-{next(_numbers)}"
        chain, key_path = path.with_suffix(".pem"), path.with_suffix(".key")
        chain.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        key_path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return Certificate(str(chain), str(key_path))

    def client_tls(self) -> ssl.SSLContext:
        """Return a context for a client that trusts this authority and nobody else."""
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        tls.load_verify_locations(cadata=self.pem())
        return tls

    def pem(self) -> str:
        """Return its own certificate."""
        return self._certificate.public_bytes(serialization.Encoding.PEM).decode("ascii")


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    begin: datetime,
    end: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
    )


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
